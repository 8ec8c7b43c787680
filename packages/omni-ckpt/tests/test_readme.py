import re
from pathlib import Path

from omni_ckpt import latest, merge_to_hf, read_plain, steps


def test_the_script_saves_is_stopped_and_resumes(tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    said = []

    def tell(line):
        said.append(line)
        if len(said) == 12:
            raise KeyboardInterrupt

    for number in (5, 10):
        try:
            exec(compile(script, "README.md", "exec"), {"print": tell})
        except KeyboardInterrupt:
            assert number == 5
        found = latest(Path("run"))
        assert found is not None and read_plain(found)["step"] == 2 * number
    assert [line.split(":")[0] for line in said] == [f"step {step}" for step in [*range(1, 13), *range(11, 21)]]
    assert said[10:12] == said[12:14], "to the bit"
    assert [path.name for path in steps(Path("run"))] == ["step-00000015", "step-00000020"]
    merge_to_hf(found, Path("merged"), prefix="model")
    assert list(Path("merged").glob("*.safetensors"))
