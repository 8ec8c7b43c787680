"""A browser for tests, by the protocol of its driver (W3C WebDriver, and Chromium's own commands through it)."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Escape": 27}


class Browser:
    """A session of a driver that listens at `port` of this machine."""

    def __init__(self, port: int, wanted: dict[str, Any]) -> None:
        self.port, self.at = port, "/session"
        self.at = f"/session/{self.ask('POST', '', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the driver answers."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, self.at + path, None if body is None else json.dumps(body))
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(f"{path}: {value['error']}: {value['message']}")
        return value

    def open(self, page: Path) -> None:
        self.ask("POST", "/url", {"url": page.absolute().as_uri()})

    def run(self, script: str, *args: Any) -> Any:
        """What the script returns, the body of a function of `arguments`."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": args})

    def order(self, command: str, **params: Any) -> Any:
        """What Chromium answers to a command of its own."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def complaints(self) -> list[str]:
        """What the browser has said since it was last asked."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]

    def point(self, where: str, *, click: bool = False) -> None:
        """Move the pointer to the middle of an element, once it is in view, and click if asked to."""
        x, y = self.run(
            """const element = document.querySelector(arguments[0]);
            element.scrollIntoView({ block: "center" });
            const box = element.getBoundingClientRect();
            return [box.left + box.width / 2, box.top + box.height / 2];""",
            where,
        )
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            how = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.order("Input.dispatchMouseEvent", type=kind, x=x, y=y, **how)

    def press(self, where: str, *keys: str) -> None:
        """Press keys in an element, which has the focus then."""
        self.run("document.querySelector(arguments[0]).focus()", where)
        for key in keys:
            for kind in ("rawKeyDown", "keyUp"):
                self.order("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])


def _find_port(driver: subprocess.Popen[str]) -> int:
    """Where a driver listens, once it says so."""
    told = ""
    for line in driver.stdout or ():
        if found := re.search(r"successfully on port (\d+)", line):
            return int(found[1])
        told += line
    raise AssertionError(f"the driver ended with code {driver.wait()}:\n{told}")


@contextmanager
def browsing(binary: str, driver: str, folder: Path) -> Iterator[Browser]:
    """A browser that keeps its files in `folder`, until the end of the block."""
    chrome = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={folder}"]}
    wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": folder}
    with subprocess.Popen([driver, "--port=0"], text=True, **how) as process:
        try:
            browser = Browser(_find_port(process), wanted)
            try:
                yield browser
            finally:
                browser.ask("DELETE", "")
        finally:
            process.terminate()
