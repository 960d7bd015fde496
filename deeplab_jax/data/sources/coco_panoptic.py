"""COCO's panoptic annotations (Kirillov et al., 2019) as a semantic data set: 80 classes of things and 53 of stuff.

The layout is `{train2017,val2017}/*.jpg` or the same in `images/`, and `annotations/panoptic_{train,val}2017.json` next
to the folders of PNGs, `annotations/panoptic_{train,val}2017/`. The color of a pixel is the id of a segment, R + 256 G
+ 65536 B, and the JSON file gives each segment its category. Pixels without a segment are ignored. Classes are numbered
in the order of `panoptic_coco_categories.json` (cocodataset/panopticapi).
"""

import functools
import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import masks
from deeplab_jax.data.dataset import Dataset, RawDataset, RawExample
from deeplab_jax.data.label_map import LabelMap
from deeplab_jax.data.sources import coco, layout
from deeplab_jax.errors import UserError
from deeplab_jax.files import file_digest
from deeplab_jax.labels import IGNORE_LABEL, LabelSet

_TITLE = "COCO's panoptic annotations"

# Id, name and color of each category.
_CATEGORIES = """
1 person #dc143c; 2 bicycle #770b20; 3 car #00008e; 4 motorcycle #0000e6; 5 airplane #6a00e4; 6 bus #003c64;
7 train #005064; 8 truck #000046; 9 boat #0000c0; 10 traffic light #faaa1e; 11 fire hydrant #64aa1e;
13 stop sign #dcdc00; 14 parking meter #af74af; 15 bench #fa001e; 16 bird #a52a2a; 17 cat #ff4dff; 18 dog #00e2fc;
19 horse #b6b6ff; 20 sheep #005200; 21 cow #78a69d; 22 elephant #6e4c00; 23 bear #ae39ff; 24 zebra #c76400;
25 giraffe #480076; 27 backpack #ffb3f0; 28 umbrella #007d5c; 31 handbag #d10097; 32 tie #bcd0b6;
33 suitcase #00dcb0; 34 frisbee #ff63a4; 35 skis #5c0049; 36 snowboard #8581ff; 37 sports ball #4eb4ff;
38 kite #00e400; 39 baseball bat #aefff3; 40 baseball glove #2d59ff; 41 skateboard #868667; 42 surfboard #9194ae;
43 tennis racket #ffd0ba; 44 bottle #c5e2ff; 46 wine glass #ab8601; 47 cup #6d3f36; 48 fork #cf8aff;
49 knife #97005f; 50 spoon #09503d; 51 bowl #546933; 52 banana #4a4169; 53 apple #a6c466; 54 sandwich #d0c3d2;
55 orange #ff6d41; 56 broccoli #008f95; 57 carrot #b300c2; 58 hot dog #d1636a; 59 pizza #057900; 60 donut #e3ffcd;
61 cake #93bad0; 62 chair #994501; 63 couch #035fa1; 64 potted plant #a3ff00; 65 bed #7700aa;
67 dining table #00b6c7; 70 toilet #00a578; 72 tv #b78258; 73 laptop #5f2000; 74 mouse #827287; 75 remote #6e8185;
76 keyboard #a64a76; 77 cell phone #db8eb9; 78 microwave #4fd272; 79 oven #b25a3e; 80 toaster #41460f;
81 sink #7fa773; 82 refrigerator #3b696a; 84 book #8e6c2d; 85 clock #c4ac00; 86 vase #5f3650; 87 scissors #804cff;
88 teddy bear #c93901; 89 hair drier #f6007a; 90 toothbrush #bfa2d0; 92 banner #ffff80; 93 blanket #93d3cb;
95 bridge #966464; 100 cardboard #a8abac; 107 counter #9270c6; 109 curtain #d2aa64; 112 door-stuff #5c8859;
118 floor-wood #da58b8; 119 flower #f18100; 122 fruit #d911ff; 125 gravel #7c4ab5; 128 house #464646;
130 light #ffe4ff; 133 mirror-stuff #9ad000; 138 net #c1005c; 141 pillow #4c5b71; 144 platform #ffb4c3;
145 playingfield #6a9ab0; 147 railroad #e6968c; 148 river #3c8fff; 149 road #804080; 151 roof #5c5237;
154 sand #fed47c; 155 sea #494dae; 156 shelf #ffa062; 159 snow #ffffff; 161 stairs #68546d; 166 tent #a9a483;
168 towel #e1c7ff; 171 wall-brick #89364a; 175 wall-stone #879edf; 176 wall-tile #07f6e7; 177 wall-wood #6bffc8;
178 water-other #3a2995; 180 window-blind #b7798e; 181 window-other #ff4961; 184 tree-merged #6b8e23;
185 fence-merged #be9999; 186 ceiling-merged #928b8d; 187 sky-other-merged #4682b4; 188 cabinet-merged #86c79c;
189 table-merged #d1e28c; 190 floor-other-merged #60246c; 191 pavement-merged #606060; 192 mountain-merged #40aa40;
193 grass-merged #98fb98; 194 dirt-merged #d0e5e4; 195 paper-merged #cebaab; 196 food-other-merged #98a140;
197 building-other-merged #747000; 198 rock-merged #00728f; 199 wall-other-merged #66669c; 200 rug-merged #fa8dff
"""
_ENTRIES = [entry.split() for entry in _CATEGORIES.replace("\n", " ").split(";")]

LABEL_SET = LabelSet(
    tuple(" ".join(entry[1:-1]) for entry in _ENTRIES), tuple(tuple(bytes.fromhex(entry[-1][1:])) for entry in _ENTRIES)
)
LABEL_MAP = LabelMap.create(LABEL_SET, ids=[int(entry[0]) for entry in _ENTRIES], ignore_ids=[0])


def read_raw(root: pathlib.Path) -> RawDataset:
    """The splits `train` and `val`, if their annotations are there.

    Raises:
      UserError: the folder does not have the layout of COCO, or an annotation file is damaged.
    """
    root = layout.find_root(root, "annotations/panoptic_*2017.json", _TITLE)
    splits, digests = {}, []
    for split in ("train", "val"):
        path = root / "annotations" / f"panoptic_{split}2017.json"
        if path.is_file():
            content = coco.read_annotations(path, ("images", "annotations"))
            images = coco.find_images(root, f"{split}2017")
            digests.append(file_digest(path))
            names = {entry["id"]: entry.get("file_name") for entry in content["images"]}
            splits[split] = [_example(entry, names, images, path) for entry in content["annotations"]]
    return RawDataset(LABEL_SET, splits, label_map=LABEL_MAP, rules=" ".join(digests))


def _example(entry: dict[str, Any], names: dict[int, Any], images: pathlib.Path, path: pathlib.Path) -> RawExample:
    image = images / coco.file_name(names.get(entry.get("image_id")), path)
    mask = path.with_suffix("") / coco.file_name(entry.get("file_name"), path)
    try:
        segments = {segment["id"]: segment["category_id"] for segment in entry["segments_info"]}
        table = np.array(sorted(segments.items()), np.int64).reshape(-1, 2)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: the segments of {mask.name} are wrong ({error!r})") from None
    return RawExample(image.stem, image, functools.partial(_read_label, mask, table), label_files=(mask,))


def _read_label(path: pathlib.Path, segments: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    """The class of each pixel, from the ids and the categories of the segments."""
    stored = masks.load_mask(path)
    if stored.kind != "RGB":
        raise UserError(f"mask {path} is a {stored.kind} image; panoptic masks are RGB")
    red, green, blue = stored.values >> 16, stored.values >> 8 & 255, stored.values & 255
    ids = red | green << 8 | blue << 16
    categories = np.concatenate([[0], LABEL_MAP.apply(segments[:, 1][None], path)[0]])
    categories[0] = IGNORE_LABEL
    known = np.concatenate([[0], segments[:, 0]])
    position = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    wrong = known[position] != ids
    if wrong.any():
        raise UserError(f"mask {path} contains segment {int(ids[wrong][0])}, which its annotation does not list")
    return categories[position].astype(np.uint8)


DATASET = Dataset(
    name="coco_panoptic",
    read_raw=read_raw,
    label_map=LABEL_MAP,
    archives=(*coco.IMAGES, coco.PANOPTIC),
    is_needed=lambda name: "2017" in name,
    sizes={"train": 118287, "val": 5000},
)
