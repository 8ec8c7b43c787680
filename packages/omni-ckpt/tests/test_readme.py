import re
from pathlib import Path

from omni_ckpt import latest, read_plain


def test_the_script_saves_and_resumes(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for step in (10, 20, 30):
        exec(compile(script, "README.md", "exec"), {})
        found = latest(Path("run"))
        assert found is not None and read_plain(found)["state"]["step"] == step
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses == sorted(losses, reverse=True)
    assert sorted(path.name for path in Path("run").glob("step-*")) == ["step-00000020", "step-00000030"]
