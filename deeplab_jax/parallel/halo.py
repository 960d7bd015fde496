"""Check that a network whose image rows are split over devices exchanges only neighboring rows (halos)."""

from jax.extend import core

from deeplab_jax.errors import UserError
from deeplab_jax.parallel.jaxpr import equations


def check_halo(jaxpr: core.Jaxpr, spatial: int, *, field: str) -> None:
    """Refuses convolutions for which XLA would gather all rows of their input on every device.

    XLA exchanges halos, across several devices if needed, as long as a device's own rows plus the rows it requests are
    fewer than all. Beyond that it gathers the input on every device, which defeats the purpose of splitting rows.

    Args:
      jaxpr: the traced forward pass.
      spatial: number of devices that share the rows of an image.
      field: config field that sets the input size, for the error.

    Raises:
      UserError: naming the layer, its rate and the fix.
    """
    for path, eqn in equations(jaxpr):
        if eqn.primitive.name != "conv_general_dilated" or eqn.params["lhs_dilation"] != (1, 1):
            continue  # resizing reaches one row
        height = eqn.invars[0].aval.shape[1]
        rate, padding = eqn.params["rhs_dilation"][0], eqn.params["padding"][0]
        reach = rate * (eqn.invars[1].aval.shape[0] - 1)  # rows above and below together
        rows = height // spatial
        if max(padding) > rows and rows + reach >= height:
            layer = path.partition("/")[2]  # without the network's own name
            raise UserError(
                f"{layer}: rate {rate} on {height} rows needs the whole image, but mesh.spatial={spatial} leaves "
                f"{rows} rows per device; use a smaller mesh.spatial, a larger height in {field} or smaller rates"
            )
