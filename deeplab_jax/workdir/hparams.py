"""Messages of TensorBoard's HParams plugin, which compares runs by their fields."""

import time
from typing import Any

_PLUGIN = "hparams"
_START_TAG, _END_TAG = "_hparams_/session_start_info", "_hparams_/session_end_info"


def session_start(fields: dict[str, Any]) -> Any:
    """Returns the `Summary` that names the fields of a run. Fields without a value are left out.

    No list of all fields and metrics is written: TensorBoard finds them in the runs that it shows, whatever they have.
    """
    from tensorboardX.proto.plugin_hparams_pb2 import SessionStartInfo

    start = SessionStartInfo(start_time_secs=time.time())
    for name, value in fields.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, (int, float)):
            start.hparams[name].number_value = value
        elif value is not None:
            start.hparams[name].string_value = str(value)
    return _summary(_START_TAG, session_start_info=start)


def session_end() -> Any:
    """Returns the `Summary` that says that a run is finished."""
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import SessionEndInfo

    end = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    return _summary(_END_TAG, session_end_info=end)


def _summary(tag: str, **message: Any) -> Any:
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

    content = HParamsPluginData(version=0, **message).SerializeToString()
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=_PLUGIN, content=content))
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata)])
