"""The script that is written beside an exported network: it labels an image as prediction does, without this package.

It needs NumPy, OpenCV, Pillow and the file's runtime. The steps around the network are those of `Predictor`.
"""

from deeplab_jax import data
from deeplab_jax.data.protocol import Guide, Squeeze, Whole
from deeplab_jax.data.view_protocols import KeepRatio
from deeplab_jax.export.program import MIN_SIZE, Program

_RUNTIMES = {
    "onnx": (
        "import onnxruntime",
        'session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])',
        'result = session.run(None, {"images": images})[0][0]',
    ),
    "tflite": (
        "from ai_edge_litert.interpreter import Interpreter",
        'runner = Interpreter(str(network)).get_signature_runner("serving_default")',
        'result = runner(images=images)["OUTPUT"][0]',
    ),
    "stablehlo": (
        "from jax import export",
        "exported = export.deserialize(bytearray(network.read_bytes()))",
        "result = np.array(exported.call(images)[0])",
    ),
    "savedmodel": (
        "import tensorflow as tf",
        "model = tf.saved_model.load(str(network))",
        'result = model.signatures["serving_default"](images=tf.constant(images))["OUTPUT"][0].numpy()',
    ),
}


def write_script(
    program: Program, protocol: data.EvalProtocol, pixels: data.PixelFormat, file_format: str, name: str
) -> str | None:
    """Returns the text of the script.

    Args:
      program: the exported program.
      protocol: how prediction feeds images to it, see `feeding.protocol_of`.
      pixels: the format of the images.
      file_format: one of `FORMATS`.
      name: name of the exported file or folder.

    Returns:
      The script; None if the protocol needs more than one call of the network, or sizes that the file does not take.
    """
    fit = _fit(program, protocol)
    if fit is None or (protocol.antialias and not pixels.is_rgb):
        return None
    libraries, load, run = (line.replace("OUTPUT", program.output_name) for line in _RUNTIMES[file_format])
    in_folder = file_format == "savedmodel"
    path = "pathlib.Path(__file__).parents[1]" if in_folder else f'pathlib.Path(__file__).with_name("{name}")'
    description = 'with_name("deeplab_jax.json")' if in_folder else f'with_name("{name}.json")'
    stack = f"np.stack([fed] * {program.options.batch})" if (program.options.batch or 1) > 1 else "fed[None]"
    if program.channels == 1:  # OpenCV drops the axis of a single channel
        stack = f"{stack}.reshape(-1, *fed.shape[:2], 1)"
    resize = (
        "labels = cv2.resize(result[:rows, :columns], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)"
        if program.options.argmax
        else "logits = cv2.resize(result[:rows, :columns], (width, height), interpolation=cv2.INTER_LINEAR)\n"
        "labels = logits.argmax(axis=-1).astype(np.uint8)"
    )
    note = (
        "# The file returns labels, so only these can be resized: borders differ a little from `deeplab-jax predict`."
        if program.options.argmax
        else "# Resize logits, not labels: bilinear, half-pixel centers."
    )
    return "\n".join(
        [
            f'"""Labels an image with {name} as `deeplab-jax predict` does: {name}.predict.py IMAGE MASK.png"""',
            "",
            *(["import json", "import math", "import pathlib", "import sys"] if "math." in fit else
              ["import json", "import pathlib", "import sys"]),
            "",
            "import cv2",
            "import numpy as np",
            libraries,
            "from PIL import Image, ImageOps",
            "",
            f"network = {path}",
            load,
            _read(pixels),
            "height, width = image.shape[:2]",
            fit,
            f"images = {stack}.astype(np.{program.dtype.name})  # the network normalizes",
            run,
            note,
            resize,
            "mask = Image.fromarray(labels)",
            f'mask.putpalette(sum(json.loads(pathlib.Path(__file__).{description}.read_text())["palette"], []))',
            "mask.save(sys.argv[2])",
            "",
        ]
    )  # fmt: skip


def _read(pixels: data.PixelFormat) -> str:
    if pixels.is_rgb:
        return 'image = np.asarray(ImageOps.exif_transpose(Image.open(sys.argv[1])).convert("RGB"))'
    return "image = np.load(sys.argv[1])  # (height, width, channels), in the values that the network was trained on"


def _fit(program: Program, protocol: data.EvalProtocol) -> str | None:
    """The lines that compute `fed`, the network's input, and `rows` and `columns`, the part of it with the image."""
    if isinstance(protocol, Squeeze | Guide):
        height, width = protocol.train_size
        return f"rows, columns = {height}, {width}\n" + _resize(protocol, "image", "(columns, rows)", "fed")
    if isinstance(protocol, Whole):
        return _pad(program, protocol)
    if isinstance(protocol, KeepRatio) and program.options.size is None:
        return _keep_ratio(protocol)
    return None


def _pad(program: Program, protocol: Whole) -> str | None:
    lines = ["rows, columns = height, width"]
    if protocol.eval_size is not None:
        high, wide = protocol.eval_size
        lines = [
            f"factor = min(1.0, {high} / height, {wide} / width)",
            "rows, columns = max(1, math.floor(height * factor)), max(1, math.floor(width * factor))",
            "if factor < 1:",
            "    " + _resize(protocol, "image", "(columns, rows)", "image"),
            f"below, right = {high} - rows, {wide} - columns",
        ]
    else:
        lines += [
            "def bucket(side):  # sizes that `deeplab-jax predict` pads to",
            "    step = max(64, 2 ** math.ceil(math.log2(side)) // 8)",
            "    return math.ceil(side / step) * step" + ("" if program.needs_multiples else " + 1"),
            "below, right = bucket(height) - height, bucket(width) - width",
        ]
        if program.needs_multiples:
            lines[1] = f"def bucket(side):  # a multiple of {MIN_SIZE}; `deeplab-jax predict` pads to one more"
    color = tuple(protocol.pad_color)
    return "\n".join(
        [
            *lines,
            "# Pads with the mean color.",
            f"fed = np.full((rows + below, columns + right, {program.channels}), {color}, image.dtype)",
            "fed[:rows, :columns] = image",
        ]
    )


def _keep_ratio(protocol: KeepRatio) -> str:
    lines = []
    if protocol.scale_to is not None:
        shorter, longer = protocol.scale_to
        lines += [
            f"factor = min({shorter} / min(height, width), {longer} / max(height, width))",
            "rows, columns = (max(1, math.floor(side * factor + 0.5)) for side in (height, width))",
            _resize(protocol, "image", "(columns, rows)", "fed"),
        ]
    else:
        lines += ["rows, columns, fed = height, width, image"]
    if (multiple := protocol.multiple) > 1:
        lines += [
            f"rows, columns = (math.ceil(side / {multiple}) * {multiple} for side in (rows, columns))",
            _resize(protocol, "fed", "(columns, rows)", "fed"),
        ]
    return "\n".join(lines)


def _resize(protocol: data.EvalProtocol, source: str, size: str, result: str) -> str:
    if protocol.antialias:
        return f"{result} = np.asarray(Image.fromarray({source}).resize({size}, Image.Resampling.BILINEAR))"
    return f"{result} = cv2.resize({source}, {size}, interpolation=cv2.INTER_LINEAR)  # not antialiased"
