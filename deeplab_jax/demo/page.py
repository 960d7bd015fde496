"""The demo page: Gradio components around `deeplab_jax.demo.networks`, and the server."""

import contextlib
import html
import logging
import os
import pathlib
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from deeplab_jax.data.image_files import IMAGE_FORMATS
from deeplab_jax.demo import networks as networks_lib
from deeplab_jax.demo import uploads
from deeplab_jax.errors import UserError
from deeplab_jax.inference.runtime import XLA
from deeplab_jax.labels import SYNTHETIC

if TYPE_CHECKING:
    import fastapi
    import gradio

logger = logging.getLogger(__name__)

_CONCURRENT = 4  # requests processed at a time; others wait in a queue
_WAITING = 64  # length of the queue
_DELETE_AFTER = (600, 3600)  # seconds: interval of the clean-up, and maximum age of the page's files

_FONT = ("system-ui", "sans-serif")  # a web font would be downloaded
_CSS = pathlib.Path(__file__).with_suffix(".css")

_HEAD = "<h1>deeplab_jax</h1> <p>Semantic segmentation demo. Your images stay on the machine that serves this page.</p>"
_HINT = '<p class="time">The first image of each size takes longer, because the network is compiled for it.</p>'

# The routes of Gradio that the page uses. Others fetch addresses, keep histories or call functions by name.
_API = "/gradio_api/"
_ROUTES = ("queue/", "upload", "heartbeat/", "startup-events", "info", "cancel", "reset", "app_id", "login_check")
_FILE_ROUTE = "file="

# The browser may only contact this server, even if a Gradio release asks for more.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'"


def serve(
    named: Sequence[str | pathlib.Path] = (),
    workdir: pathlib.Path | None = None,
    *,
    host: str,
    port: int,
    max_bytes: int,
    max_pixels: int,
    runtime: str = XLA,
) -> None:
    """Serves the page until Ctrl-C, SIGTERM or SIGHUP, and logs its address.

    Loads the networks in `named` and `workdir` before it serves, so that mistakes are reported at once.

    Args:
      named: presets and folders that come first in the menu.
      workdir: a training run whose network is offered too.
      host: address to bind.
      port: port to bind; 0 picks a free one.
      max_bytes: largest accepted upload.
      max_pixels: largest accepted image, height times width.
      runtime: what computes the networks, see `Predictor`.

    Raises:
      UserError: Gradio is not installed, the address is not available, or a network cannot be loaded.
    """
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        # They must leave this block too, which deletes the folder. Uvicorn raises a signal again after shutdown.
        stack.enter_context(_interrupt_on_signals())
        files = stack.enter_context(uploads.open_folder())
        os.environ["GRADIO_TEMP_DIR"] = str(files)  # Gradio reads it on import and later
        _import_gradio()
        listener = stack.enter_context(_bind(host, port))
        found = networks_lib.find_networks(named, workdir, runtime=runtime)
        networks = networks_lib.Networks(found, max_pixels=max_pixels)
        label_sets = [networks.label_set(name) for name in networks.names[: max(1, len(named) + (workdir is not None))]]
        examples = _draw_examples(files) if SYNTHETIC in label_sets else []
        app = build_app(networks, files, max_bytes=max_bytes, examples=examples)
        import uvicorn

        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        logger.info("Open http://%s:%d in a browser; press Ctrl-C to stop", shown, port)
        # Without a limit, shutdown would wait until browsers close their connections.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])


def build_app(
    networks: networks_lib.Networks, files: pathlib.Path, *, max_bytes: int, examples: Sequence[pathlib.Path] = ()
) -> "fastapi.FastAPI":
    """Builds the page as an ASGI application.

    Args:
      networks: the networks to offer.
      files: the folder of uploads, see `uploads.open_folder`; no other file is opened.
      max_bytes: largest accepted upload; larger ones are rejected while they arrive.
      examples: sample images.

    Raises:
      UserError: Gradio is not installed.
    """
    gradio = _import_gradio()
    import fastapi

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    app.add_middleware(_Guard, files=files)
    return gradio.mount_gradio_app(
        app,
        _blocks(gradio, networks, files, max_bytes, examples),
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=max_bytes,
        theme=gradio.themes.Base(primary_hue="slate", neutral_hue="gray", font=_FONT, font_mono=("monospace",)),
        css_paths=[_CSS],
    )


def respond(networks: networks_lib.Networks, files: pathlib.Path, image: str | None, name: str) -> tuple[Any, Any, str]:
    """Handles a click on the button.

    Args:
      networks: the networks on offer.
      files: the folder of uploads.
      image: what the visitor sent as the path of the uploaded file; None without one.
      name: the chosen network.

    Returns:
      The overlay, the mask as a palette image, and a report in HTML. After a user's mistake the report says what is
      wrong, and the images are None.
    """
    if image is None:
        return None, None, _problem("upload an image first")
    path = uploads.find_upload(files, image)
    if path is None:
        return None, None, _problem("this image is not on the server; upload it again")
    try:
        result = networks.segment(path, name)
    except UserError as error:
        return None, None, _problem(str(error).replace(str(path), path.name))  # do not reveal the server's folders
    mask = Image.fromarray(result.label_map)
    mask.putpalette(result.label_set.color_table().tobytes())
    return result.overlay, mask, _report(result)


class _Guard:
    """ASGI middleware that serves only what the page needs, and forbids the browser to contact other servers."""

    def __init__(self, app: Any, files: pathlib.Path):
        self._app, self._files = app, files

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self._is_open(scope["path"]):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"Not found"})
            return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", _POLICY)]}
            await send(message)

        await self._app(scope, receive, send_with_policy)

    def _is_open(self, path: str) -> bool:
        route = path.removeprefix(_API)
        if route == path or route.startswith(_ROUTES):
            return True
        named = route.removeprefix(_FILE_ROUTE)
        return named != route and uploads.find_upload(self._files, named) is not None


def _blocks(
    gradio: Any,
    networks: networks_lib.Networks,
    files: pathlib.Path,
    max_bytes: int,
    examples: Sequence[pathlib.Path],
) -> "gradio.Blocks":
    formats = f"{', '.join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}"
    kinds = f"{formats}, up to {max_bytes / 2**20:g} MB and {networks.max_pixels / 1e6:g} megapixels; read as 8-bit RGB"
    with gradio.Blocks(
        title="deeplab_jax", analytics_enabled=False, fill_width=True, delete_cache=_DELETE_AFTER
    ) as blocks:
        gradio.HTML(_HEAD, elem_id="head", padding=False)
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=3, min_width=280):
                image = gradio.Image(
                    type="filepath",
                    image_mode=None,
                    sources=["upload"],
                    label="Image",
                    height=240,
                    buttons=[],
                    elem_id="image",
                    placeholder="Drop an image here, or click to choose one",
                )
                _take_only_uploads(image)
                gradio.HTML(f"<p>{kinds}</p>", elem_id="kinds", padding=False)
                network = gradio.Dropdown(list(networks.names), label="Network", filterable=False, elem_id="network")
                button = gradio.Button("Segment", variant="primary", elem_id="run")
                if examples:
                    gradio.Examples([[str(path)] for path in examples], [image], label="Samples")
            with gradio.Column(scale=7, min_width=320):
                with gradio.Row():
                    overlay, mask = (
                        gradio.Image(
                            label=label,
                            format="png",
                            interactive=False,
                            buttons=["download", "fullscreen"],
                            alt_text=alt_text,
                            elem_id=label.lower(),
                            elem_classes="result",
                            min_width=240,
                        )
                        for label, alt_text in (
                            ("Overlay", "The image tinted with the colors of its classes"),
                            ("Mask", "The class of every pixel as a color"),
                        )
                    )
                report = gradio.HTML(_HINT, elem_id="report", padding=False)
        button.click(
            lambda image, name: respond(networks, files, image, name),
            [image, network],
            [overlay, mask, report],
            show_progress_on=[overlay, mask],
            concurrency_limit=_CONCURRENT,
            api_visibility="private",
        )
        blocks.queue(max_size=_WAITING, api_open=False)
    return blocks


def _take_only_uploads(image: Any) -> None:
    """Makes an image component pass on the path that a visitor sends. `respond` checks it and opens the file.

    Gradio would first copy any file of the server to the page's folder, or download it if it is an address: it protects
    only pages that it serves itself. Then it would open the file with Pillow, in any format.
    """

    async def keep(path: str) -> str:
        return path

    image.preprocess = lambda payload: payload and payload.path
    image.async_move_resource_to_block_cache = keep


def _report(result: networks_lib.Segmentation) -> str:
    height, width = result.label_map.shape
    once = [
        f"{_seconds(seconds)} to {what}"
        for seconds, what in (
            (result.load_seconds, "load the network"),
            (result.compile_seconds, "compile the network for this size"),
        )
        if seconds >= 0.1
    ]
    before = f"<br>One-time setup: {' and '.join(once)}." if once else ""
    colors = result.label_set.color_table()
    rows = "".join(
        f'<li style="--color: rgb({", ".join(str(value) for value in colors[share.class_id])})">'
        f'<span class="name">{html.escape(share.name)}</span>'
        f'<span class="bar"><span style="width: {100 * share.fraction:.2f}%"></span></span>'
        f'<span class="percent">{html.escape(share.percent)}</span></li>'
        for share in result.shares
    )
    return (
        f'<p class="time">{width} x {height} pixels segmented in {_seconds(result.predict_seconds)}.{before}</p>'
        f'<ul class="legend" aria-label="classes and their fraction of the pixels">{rows}</ul>'
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _problem(message: str) -> str:
    return f'<p class="problem" role="alert">{html.escape(message[:1].upper() + message[1:])}.</p>'


def _draw_examples(folder: pathlib.Path) -> list[pathlib.Path]:
    from deeplab_jax import data, visualization

    scenes = data.open_source("synthetic", "val")
    paths = [folder / f"scene_{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        visualization.save_image(path, scenes[i]["image"])
    return paths


@contextlib.contextmanager
def _interrupt_on_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP end the block like Ctrl-C. A signal that is ignored stays ignored, as `nohup` needs."""
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, signal.default_int_handler))
        yield


def _import_gradio() -> Any:
    # Gradio reads these on import. No usage data is sent.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio
    except ImportError:
        raise UserError("the demo needs Gradio; install it with `pip install 'deeplab_jax[demo]'`") from None
    return gradio


def _bind(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(
            f"cannot serve on --host {host} --port {port}: {os.strerror(error.errno) if error.errno else error}; "
            "choose another port or host"
        ) from None
