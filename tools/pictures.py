"""Draw the pictures of what other programs show: `python tools/pictures.py [terminal] [dashboard] [plots] [report]`.

All but the terminal need chromium.

docs/terminal.svg             `make run` in a terminal, half-way, as far as it is drawn without running anything
docs/optuna-dashboard.png     a study of a toy whose trainings take milliseconds
docs/dvc-plots.png            `make plots ARGS="diff HEAD"`, with made-up accuracies
docs/report.png               the report of made-up results, and docs/report-phone.png, docs/report-dark.png
docs/report-2-classes.png     what it shows of mistakes with two classes; the same with 4, 50 and 1000
"""

import html
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
for folder in ("orchestration", "tuning", "reporting"):
    sys.path.insert(0, str(ROOT / "tests" / folder))


def main() -> None:
    wanted = sys.argv[1:]
    for draw in (one for one in (terminal, dashboard, plots, report) if not wanted or one.__name__ in wanted):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            print(draw())
            os.chdir(ROOT)


def terminal() -> Path:
    """Draw the view of the default experiment with pretended jobs."""
    import pretend
    from rich.console import Console

    from iakd.config import read_settings
    from iakd.orchestration import run_view

    run = pretend.Pretend(read_settings(ROOT / "experiments/digits.yaml"))
    run_view.on_terminal = lambda: True
    console = Console(record=True, width=80, height=24, force_terminal=True, highlight=False, file=io.StringIO())
    run.start()
    view = run.handler._run
    assert isinstance(view, run_view.TerminalView)
    view.live.stop()
    view.since -= 170
    for job in run.needed:
        path = str(Path(job.output[0]).parent.relative_to("results"))
        if job.name in ("prepare", "teach") or (job.name == "distill" and "/kd" in path) or "/kd/" in path:
            seconds = {"prepare": 2, "teach": 25, "distill": 6}.get(job.name, 1)
            run.begin(job)
            view._began[job.number] -= seconds
            run.finish(job)
    study, student = run.job("tune", "two-path-tuned"), run.job("distill", "iakd-linear/seed3")
    for job in (study, student):
        run.begin(job)
    run.live("digits/tune/resnet20w8-resnet8w8/two-path-tuned", [{"trial": n, "best_value": 95.9} for n in range(5)])
    run.live("digits/students/resnet20w8-resnet8w8/iakd-linear/seed3", pretend.epochs(140, 140, 92.3))
    for path in Path(".state").rglob("*"):
        if path.is_file():
            pretend.ago(path, 40)
    view._read_again = 0.0
    console.print("$ make run\ndigits: 137 jobs to run", view._draw())
    console.save_svg(str(DOCS / "terminal.svg"), title="make run")
    return DOCS / "terminal.svg"


def dashboard() -> Path:
    """Run a toy study and take a picture of it in optuna-dashboard."""
    import toy_study

    toy_study.prepare()
    toy_study.run(toy_study.settings(trials=40, workers=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    journal = "results/toy/tune/big-small/iakd-tuned/study.journal"
    server = subprocess.Popen(["optuna-dashboard", journal, "--port", str(port), "--quiet"], **QUIET)
    try:
        address = f"http://127.0.0.1:{port}/dashboard/studies/0"
        for _ in range(60):
            try:
                urllib.request.urlopen(address)
                break
            except OSError:
                time.sleep(1)
        photograph(address, DOCS / "optuna-dashboard.png", "1300,1230")
    finally:
        server.terminate()
        server.wait()
    return DOCS / "optuna-dashboard.png"


def plots() -> Path:
    """Draw two revisions of made-up results with DVC."""
    import fake_experiment

    from iakd.reporting import tables
    from iakd.reporting.results import read_comparison

    home = Path.cwd() / "home"
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    os.environ.update(who, HOME=str(home), DVC_SITE_CACHE_DIR=str(home / "dvc"), DVC_NO_ANALYTICS="1")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, check=True)
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")
    shutil.copy(ROOT / "params.yaml", ".")
    text = (ROOT / "dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text[text.index("\nplots:") :])
    methods = {"scratch": {}, "kd": {}, "iakd-linear": {"method": "iakd"}}
    for gain in (0.0, 0.8):
        experiment = fake_experiment.plan(methods, epochs=5)
        scores = {label: [90 + 2 * n + gain + s for s in (0, 0.3, 0.7)] for n, label in enumerate(methods)}
        fake_experiment.write(experiment, scores)
        comparison = read_comparison(experiment)
        for name, rows in (("accuracy", tables.accuracy(comparison)), ("curves", curves(tables.curves(comparison)))):
            from iakd.experiment.run_dir import history_text

            path = experiment.evaluation / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(history_text(rows))
        if not gain:
            subprocess.run(["git", "add", "--all"], check=True)
            subprocess.run(["git", "commit", "-qm", "one"], check=True)
    subprocess.run([sys.executable, str(ROOT / "tools/plots.py"), "diff", "HEAD", "-o", "drawn"], check=True, **QUIET)
    photograph((Path.cwd() / "drawn/index.html").as_uri(), DOCS / "dvc-plots.png", "720,740")
    return DOCS / "dvc-plots.png"


def curves(rows: list[dict]) -> list[dict]:
    """Return made-up learning curves that end with the given accuracies."""
    return [
        {**row, "epoch": epoch, "val_top1": row["val_top1"] - 30 / epoch, "loss": 2 / epoch}
        for row in rows
        for epoch in range(1, 11)
    ]


def report() -> Path:
    """Take pictures of a report of made-up results: wide, on a phone, in dark mode, and with few and many classes."""
    import fake_experiment

    from iakd.stages import report

    experiment = fake_experiment.example()
    fake_experiment.measured(experiment)
    page = Path.cwd() / report.run(experiment)
    photograph(f"file://{page}", DOCS / "report.png", "1200,1500")
    photograph(f"file://{page}", DOCS / "report-dark.png", "1200,1000", "--force-dark-mode")
    phone = Path("phone.html")  # a window is never as narrow as a phone, a frame in it is
    frame = '<body style="margin: 0"><iframe style="border: 0; width: 390px; height: 1500px"'
    phone.write_text(f'<!doctype html>{frame} srcdoc="{html.escape(page.read_text())}"></iframe>')
    photograph(f"file://{phone.resolve()}", DOCS / "report-phone.png", "390,1500")
    for n in (2, 4, 50, 1000):
        os.chdir(tempfile.mkdtemp(dir="."))
        experiment = fake_experiment.plan({"kd": {}, "iakd+kd": {}}, seeds=(0,), epochs=5)
        names = [f"a long name, such as traffic sign {i}" if i % 2 else f"n{i:08d}_Xoloitzcuintli" for i in range(n)]
        fake_experiment.write(experiment, {"kd": [93.0], "iakd+kd": [95.0]}, classes=names)
        report.run(experiment)
        drawn = (experiment.report / "figures/confusion.svg").resolve()
        photograph(f"file://{drawn}", DOCS / f"report-{n}-classes.png", "870,500")
    return DOCS / "report.png"


def photograph(address: str, path: Path, size: str, *options: str) -> None:
    """Take a picture of a page, with more options for chromium."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command += ["--hide-scrollbars", f"--window-size={size}", "--virtual-time-budget=20000", *options]
        subprocess.run([*command, f"--screenshot={path}", address], check=True, **QUIET)


if __name__ == "__main__":
    main()
