# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy>=2.0", "marimo>=0.20", "matplotlib>=3.8"]
# ///
"""A live page for every stage, computed by the stages' own code.

    python -m pip install marimo matplotlib
    python explore.py                 all pages, in the browser
    python explore.py --stage 5       one page: a stage's number, or "capstone"
    python explore.py --stage 5 --edit    its code beside it: change a line, and see

The pages stand in explorer/, one marimo notebook (a plain Python file) for each stage. They import
the stages and show what these compute. Nothing is loaded from the network, and the server answers
this machine only.
"""

import argparse
import html
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import webbrowser

from explorer.pages import FOLDER, PAGES, ROOT

NEEDED = ("marimo", "matplotlib", "numpy")
HOST = "127.0.0.1"
PORT = 8400  # the first to try


def missing():
    """Which of the packages that the pages need are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def listen(port):
    """A socket that listens on this machine at `port`, or at the next free one."""
    for number in range(port, min(port + 100, 65536)):
        listener = socket.socket()
        if os.name == "posix":  # elsewhere it would share a port that is in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
            listener.listen()
            return listener
        except OSError:
            listener.close()
    raise OSError(f"no port from {port} to {number} is free")


def front_page():
    """The list of all pages, as HTML."""
    style = (FOLDER / "look.css").read_text(encoding="utf-8")
    rows = "".join(
        f'<p><a href="/{page.name}/">{page.title}</a><br>{html.escape(page.idea)} '
        f'<span class="quiet"><code>{page.file}</code></span></p>'
        for page in PAGES
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>Language models, live</title><style>{style}</style></head>"
        '<body class="front"><main class="look"><h1>Language models, live</h1>'
        "<p>A page for every stage, computed by the stage's own code. Each says what to try; "
        "<code>python explore.py --stage 5 --edit</code> opens the code beside page 5.</p>"
        f"{rows}</main><script>if (matchMedia('(prefers-color-scheme: dark)').matches) "
        "document.body.classList.add('dark')</script></body></html>"
    )


def serve(listener):
    """Answer with the pages until Ctrl-C."""
    import marimo
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse
    from starlette.routing import Mount, Route

    from explorer import look  # noqa: F401  matplotlib takes a second; better now than later

    # Whoever closes a window in the middle of a training cuts off what is being sent to it. That is
    # no news: asyncio's warning of it, and no other, is left out.
    logging.getLogger("asyncio").addFilter(
        lambda record: record.getMessage() != "socket.send() raised exception."
    )
    pages = marimo.create_asgi_app(quiet=True, include_code=True)
    for page in PAGES:
        pages = pages.with_app(path=f"/{page.name}", root=str(page.notebook))
    front = HTMLResponse(front_page())
    app = Starlette(
        routes=[Route("/", lambda request: front), Mount("/", pages.build())],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def edit(page, port, headless):
    """Open marimo's editor on one page's file, or on the folder of all; returns its exit status."""
    target = page.notebook if page else FOLDER
    command = [sys.executable, "-m", "marimo", "edit", str(target), "--host", HOST]
    command += ["--port", str(port), "--no-sandbox", "--skip-update-check"]
    if headless:
        command.append("--headless")
    with subprocess.Popen(command, cwd=ROOT) as editor:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the editor's: it asks first
        return editor.wait()


def page_of(word):
    """The page of "5", "attend" or "capstone"."""
    for page in PAGES:
        if word in (str(page.number), page.name):
            return page
    raise argparse.ArgumentTypeError(
        f"{word!r} is no page; expected 1 to {PAGES[-1].number}, or one of "
        + ", ".join(page.name for page in PAGES)
    )


def main(argv=None):
    """Read the command line and show the pages; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", type=page_of, metavar="N", help="go straight to this page")
    parser.add_argument("--edit", action="store_true", help="open the code beside the page")
    parser.add_argument("--fast", action="store_true", help="trainings of seconds, to look around")
    parser.add_argument("--port", type=int, default=PORT, help=f"the first to try ({PORT})")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    args = parser.parse_args(argv)
    for name in ("stdout", "stderr"):  # None where they were closed; marimo wants them
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
    lacking = missing()
    if lacking:
        print(
            f"The pages need {' and '.join(lacking)}: python -m pip install {' '.join(lacking)}",
            file=sys.stderr,
        )
        return 2
    # One thread for BLAS leaves the other core to the page; small products lose nothing by it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if args.fast:
        os.environ["EXPLORE_FAST"] = "1"
    if not 0 < args.port < 65536:
        parser.error(f"argument --port: {args.port} is no port; expected 1 to 65535")
    if args.edit:
        return edit(args.stage, args.port, args.no_browser)
    try:
        listener = listen(args.port)
    except OSError as error:
        parser.error(str(error))
    address = f"http://{HOST}:{listener.getsockname()[1]}/"
    if args.stage:
        address += f"{args.stage.name}/"
    try:
        print(f"The pages are at {address} (Ctrl-C ends this)", flush=True)
        if not args.no_browser:
            webbrowser.open(address)
        serve(listener)
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    os._exit(0)  # at once: neither marimo's threads nor a training are waited for


if __name__ == "__main__":
    sys.exit(main())
