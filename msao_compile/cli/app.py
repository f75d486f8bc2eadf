"""The command `msao-compile`: its sub-commands, and the place where an error becomes an exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from msao_compile.cli import (
    answer,
    bench,
    care,
    doctor,
    draw,
    evaluate,
    export,
    fit,
    kit,
    look,
    make,
    place,
    prove,
    report,
    serve,
    vouch,
)
from msao_compile.cli.talk import StderrHandler, Talk, write_line
from msao_compile.errors import InputError, MsaoError

PROGRAM = "msao-compile"
INTERRUPTED = 130
UNEXPECTED = 3

EXTRAS = {
    "torch": "compile",
    "transformers": "compile",
    "onnx": "compile",
    "onnx_ir": "compile",
    "onnxscript": "compile",
    "onnxruntime": "ort",
    "cryptography": "kit",
    "matplotlib": "bench",
    "optuna": "fit",
    "highspy": "place",
    "grpc": "remote",
    "tritonclient": "remote",
    "aiohttp": "remote",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "zstandard": "kit",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
}

COMMANDS = (
    (make.init, "propose a recipe for a checkpoint", "init ./SmolVLM-256M -o smolvlm.toml"),
    (make.plan, "what a build would run, and why", "plan recipes/shapes-vqa.toml"),
    (make.build, "build a deployment", "build recipes/shapes-vqa.toml --target edge --jobs 2"),
    (kit.kit, "pack what a device builds its engines from", "kit DEPLOYMENT --target jetson -o kit.tar.zst"),
    (export.export, "for NVIDIA Triton", "export DEPLOYMENT --format triton -o model-repository"),
    (vouch.keygen, "make a key to sign with", "keygen ~/.keys/builder.pem"),
    (vouch.sign, "sign a receipt or a deployment", "sign receipt.json --key ~/.keys/builder.pem"),
    (prove.parity, "compare with the torch original", "parity DEPLOYMENT --reference outputs.npz --model edge"),
    (evaluate.eval, "count right answers", "eval DEPLOYMENT --samples questions.jsonl --limit 600"),
    (fit.fit, "learn when the edge suffices", "fit DEPLOYMENT --samples questions.jsonl --epsilon 0.01"),
    (answer.run, "answer one prompt", "run DEPLOYMENT --prompt 'what color is the circle?' --image photo.png"),
    (
        serve.serve,
        "answer OpenAI's clients, or the edges of a cloud",
        "serve artifacts/deployments/shapes-vqa --role edge --port 8000",
    ),
    (
        bench.bench,
        "compare ways to answer between edge and cloud",
        "bench DEPLOYMENT --offload --samples questions.jsonl --setting recipes/settings/msao.toml",
    ),
    (
        place.place,
        "which device holds which module",
        "place --instance recipes/instances/five-tasks--campus.json",
    ),
    (report.report, "one HTML page with pictures", "report artifacts/deployments/shapes-vqa -o report.html"),
    (look.inspect, "look inside anything", "inspect artifacts/deployments/shapes-vqa --json"),
    (doctor.doctor, "check this machine", "doctor"),
    (look.schema, "JSON Schema for editors", "schema recipe > recipe.schema.json"),
    (care.gc, "clear the store", "gc --out artifacts/deployments --store artifacts/store"),
)

EXIT_CODES = (
    "Exit codes: 0 done, 2 wrong input, 3 a stage failed, 4 a tool, library or device is missing, "
    "5 a gate (parity, accuracy, budget) failed, 130 interrupted."
)

app = typer.Typer(
    name=PROGRAM,
    help="Split multimodal checkpoints into modules, build them for edge and cloud, prove that they agree, run them.",
    epilog=EXIT_CODES,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _function, _short, _example in COMMANDS:
    app.command(short_help=_short, epilog=f"\b\nExample:\n  {PROGRAM} {_example}")(_function)


def _show_version(wanted: bool) -> None:
    if wanted:
        draw.line(f"{PROGRAM} {version(PROGRAM)}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the log; may stand anywhere.")] = False,
) -> None:
    """`main` takes --debug out of the arguments wherever it stands; it is declared here for the help page."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    talk = Talk(as_json="--json" in given, quiet="--quiet" in given)
    _prepare(debug)
    try:
        if sys.stdout is None:
            raise InputError("stdout is closed, so the result would be lost; open it, or send it to a file")
        words = [word for word in given if word != "--debug"] or ["--help"]
        code = app(words, PROGRAM, standalone_mode=False, obj=talk)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        talk.close()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt as error:
        return _fail(talk, error, debug)
    except (BrokenPipeError, SystemExit):  # Typer turns a closed pipe into SystemExit
        return _reader_left()
    except Exception as error:  # noqa: BLE001 - the boundary: nothing above this line may end in a traceback
        return _fail(talk, error, debug)


def _prepare(debug: bool) -> None:
    sys.stderr = sys.stderr or io.StringIO()  # where it is closed, `print` would write talk to stdout
    if not debug:
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is told once, in our own words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    level = logging.INFO if debug else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[StderrHandler()], force=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _fail(talk: Talk, error: BaseException, debug: bool) -> int:
    name, sentence, code = failure(error)
    if debug:
        traceback.print_exception(error)
    write_line(f"error: {sentence}")
    try:
        talk.close({"class": name, "message": sentence, "exit_code": code})
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _reader_left()
    return code


def failure(error: BaseException) -> tuple[str, str, int]:
    """An error's class for programs, its sentence for people, and the exit code."""
    if isinstance(error, typer.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__  # Typer takes the end of any file for a user who left
    kind = type(error).__name__
    if isinstance(error, MsaoError):
        return kind, " ".join(str(error).split()), error.exit_code
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "Interrupted", "interrupted", INTERRUPTED
    if isinstance(error, typer.TyperException):
        return "UsageError", _usage(error), 2
    if isinstance(error, ModuleNotFoundError) and (extra := EXTRAS.get((error.name or "").partition(".")[0])):
        return "MissingTool", f"{error.name} is not installed: pip install 'msao-compile[{extra}]'", 4
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return kind, f"writing failed ({error.strerror}); free some space or send the output elsewhere", UNEXPECTED
    said = " ".join(str(error).split())
    return kind, f"unexpected {kind}{': ' + said if said else ''}; rerun with --debug to see where", UNEXPECTED


def _usage(error: typer.TyperException) -> str:
    command = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
    return f"{error.format_message().rstrip('.')}; see '{command} --help'"


def _reader_left() -> int:
    """Whoever read our output has what they wanted (`| head`): end without a word."""
    sys.stdout = io.StringIO()
    return 0
