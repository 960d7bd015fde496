"""Networks over images whose rows are split over devices, and how many rows they then ask each other for."""

import jax
import numpy as np

from deeplab_jax.errors import UserError
from deeplab_jax.models import DeepLabV3Plus, abstract_variables
from deeplab_jax.parallel.jaxpr import equations


def _check(model: DeepLabV3Plus, field: str, size: tuple[int, int], spatial: int) -> None:
    """Refuses a convolution that reaches so far that a device needs every row of its input.

    XLA sends halos, over several devices too, as long as a device's own rows and those it asks for are fewer than all;
    from there on it gathers the input on every device, which is what splitting the rows was to avoid.
    """
    images = jax.ShapeDtypeStruct((1, *size, model.in_channels), np.uint8)
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False)[0])(abstract_variables(model), images)
    for path, eqn in equations(traced.jaxpr):
        if eqn.primitive.name != "conv_general_dilated" or eqn.params["lhs_dilation"] != (1, 1):
            continue  # resizing reaches one row
        height = eqn.invars[0].aval.shape[1]
        rate, padding = eqn.params["rhs_dilation"][0], eqn.params["padding"][0]
        reach = rate * (eqn.invars[1].aval.shape[0] - 1)  # rows above and below together
        rows = height // spatial
        if max(padding) > rows and rows + reach >= height:
            layer = path.partition("/")[2]  # without the network's own name
            raise UserError(
                f"{layer}: rate {rate} on {height} rows reaches over the whole image from the {rows} rows that "
                f"mesh.spatial={spatial} leaves a device; use a smaller mesh.spatial, larger heights in {field} or "
                "smaller rates"
            )
