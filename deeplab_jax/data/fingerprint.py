"""The fingerprint of the data that a run reads, to notice when a data set was prepared again with other content."""

from typing import Any

from deeplab_jax.data.dataset import Source
from deeplab_jax.data.prepared import PreparedSource
from deeplab_jax.data.split_summary import summarize_ids

# The part of a split's stored summary that belongs to the fingerprint.
_COMPARED = ("examples", "ids", "content")


def fingerprint(source: Source) -> dict[str, Any]:
    """Describes the data of a source in values that JSON can store.

    Prepared data sets store their fingerprint, so this takes no time. For generated data sets, and for those that an
    older version prepared, the names of all examples are read, and `content` is missing.

    Args:
      source: one or several splits of a data set.

    Returns:
      `name`, `class_names`, and `splits`: for each split `examples`, their number; `ids`, a digest of their
      names in order; and `content`, a digest of their image files and labels. Compare two with `describe_change`.
    """
    return {
        "name": source.name,
        "class_names": list(source.label_set.class_names),
        "splits": _summarize(source),
    }


def describe_change(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Compares two fingerprints.

    Colors are not compared: they change how masks are drawn and nothing else.

    Returns:
      The first difference as a clause, for example "split train had 6 images and now has 9"; None if the data is the
      same.
    """
    if before["name"] != now["name"]:
        return f"the data set was {before['name']} and now is {now['name']}"
    if before["class_names"] != now["class_names"]:
        return _describe_classes(before["class_names"], now["class_names"])
    if list(before["splits"]) != list(now["splits"]):
        return f"the split was {'+'.join(before['splits'])} and now is {'+'.join(now['splits'])}"
    for split, summary in now["splits"].items():
        earlier = before["splits"][split]
        if earlier["examples"] != summary["examples"]:
            return f"split {split} had {earlier['examples']} images and now has {summary['examples']}"
        if earlier["ids"] != summary["ids"]:
            return f"split {split} has images of other names, or in another order"
        if earlier.get("content", summary.get("content")) != summary.get("content", earlier.get("content")):
            return f"images or masks of split {split} changed"
    return None


def _describe_classes(before: list[str], now: list[str]) -> str:
    if len(before) != len(now):
        return f"it had {len(before)} classes ({', '.join(before)}) and now has {len(now)} ({', '.join(now)})"
    index = next(i for i, names in enumerate(zip(before, now, strict=True)) if names[0] != names[1])
    return f"class {index} was {before[index]} and now is {now[index]}"


def _summarize(source: Source) -> dict[str, dict[str, Any]]:
    if not isinstance(source, PreparedSource):
        return {source.split: summarize_ids(source.ids())}
    return {
        split: {key: stored[key] for key in _COMPARED}
        if stored
        else summarize_ids(PreparedSource(source.folder, split).ids())
        for split, stored in source.summaries.items()
    }
