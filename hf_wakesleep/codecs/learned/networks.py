"""LearnedNetworks: all trained parts of a learned codec as one module, and how they are packed for a file."""

import torch
from torch import nn

from .context_model import ContextModel
from .entropy import BinaryTables
from .integer_conv import IntegerConv2d
from .transforms import GROUP_SIZES, Analysis, Synthesis

FINEST_STEP, COARSEST_STEP = 16, 48  # indices of the quantisation steps that the networks are trained for
FIT_LAYERS = ("outer", "context", "all")  # what can be fitted to a stream; each includes the one before


class LearnedNetworks(nn.Module):
    """Transforms, context model and tables of a learned codec, as one module that can be trained."""

    def __init__(self):
        super().__init__()
        self.analysis = Analysis()
        self.context = ContextModel()
        self.synthesis = Synthesis()
        self.tables = BinaryTables.from_logistic()

    def convolutions(self) -> dict[str, IntegerConv2d]:
        """Return all layers by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, IntegerConv2d)}

    def select_layers(self, layers: str) -> dict[str, IntegerConv2d]:
        """Return the layers that are fitted to a stream, by name.

        Args:
            layers (`str`): `"outer"`, the linear transforms and the last layers of the contexts; `"context"`, the
                linear transforms and all of the contexts; or `"all"`.
        """
        last = {f"context.nets.{group}.2" for group in range(len(GROUP_SIZES))}
        parts = {
            "outer": lambda name: name.endswith(".linear") or name in last,
            "context": lambda name: name.endswith(".linear") or name.startswith("context."),
            "all": lambda name: True,
        }
        return {name: module for name, module in self.convolutions().items() if parts[layers](name)}

    def fitted_layers(self, packed: dict[str, torch.Tensor]) -> str:
        """Return the first of `FIT_LAYERS` that holds all layers of what `pack` returned."""
        names = {name.rpartition(".")[0] for name in packed} - {"tables"}
        return next((layers for layers in FIT_LAYERS if names <= set(self.select_layers(layers))), "all")

    def pack(self, modules: dict[str, IntegerConv2d] | None = None) -> dict[str, torch.Tensor]:
        """Return tables and layers (all by default) as small integer tensors."""
        packed = {f"tables.{name}": table for name, table in self.tables.pack().items()}
        for name, module in (self.convolutions() if modules is None else modules).items():
            packed.update({f"{name}.{key}": tensor for key, tensor in module.pack().items()})
        return packed

    def unpack(self, packed: dict[str, torch.Tensor], modules: dict[str, IntegerConv2d] | None = None) -> None:
        """Take what `pack` returned.

        Raises:
            ValueError: If a tensor is missing, unknown, or has another dtype or shape.
        """
        modules = self.convolutions() if modules is None else modules
        unknown = {name.rpartition(".")[0] for name in packed} - {*modules, "tables"}
        if unknown:
            raise ValueError(f"Expected the weights of a learned codec, got unknown names {sorted(unknown)[:3]}.")
        self.tables = BinaryTables.unpack(_with_prefix(packed, "tables"))
        for name, module in modules.items():
            module.unpack(_with_prefix(packed, name))


def _with_prefix(packed: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.rpartition(".")[2]: tensor for name, tensor in packed.items() if name.rpartition(".")[0] == prefix}
