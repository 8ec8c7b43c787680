import subprocess
import sys

import pytest

from omni_ckpt import claim

HOLD = """
import sys, time
from pathlib import Path
from omni_ckpt import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_directory_is_claimed_once_and_free_when_the_process_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"is being written by process {holder.pid} of "), claim(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(2):
        with claim(tmp_path), pytest.raises(ValueError, match="two runs in one directory"), claim(tmp_path):
            pass
