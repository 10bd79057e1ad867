"""Loading packed models with transformers: the only file that touches its loading.

Importing this file registers the quantization method `moesaic`, after which `AutoModel….from_pretrained` opens packed
folders. Modules are replaced before the weights are loaded; the weights stay the memory-mapped bytes of the files.
The skipping policy of the folder, if it has one, is put to work at the end, unless the configuration says
`"pruning": false`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from moesaic.errors import CorruptFile, NotACheckpoint
from moesaic.families import MoeLayer, find_moe_layers
from moesaic.families.skeleton import load_config
from moesaic.packing.job import MANIFEST
from moesaic.packing.layout import FORMAT_VERSION, MatrixLayout
from moesaic.packing.manifest import read_manifest
from moesaic.packing.names import entry_layouts, linear_marker, marker_tensor
from moesaic.packing.pruning import PRUNING, read_pruning
from moesaic.prune import Pruning
from moesaic.records import ENTRIES, WIDTHS, LayerBits
from moesaic.runtime import single_token
from moesaic.runtime.experts import PackedExperts
from moesaic.runtime.linear import PackedLinear
from moesaic.runtime.skipping import attach

METHOD = "moesaic"
_NO_LINEARS = {"bits": 16, "modules": []}


@register_quantization_config(METHOD)
class MoesaicConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of a packed model; `docs/format.md` says what its keys mean."""

    def __init__(
        self,
        *,
        format_version: int = FORMAT_VERSION,
        group_size: int = 64,
        symmetric: bool = False,
        experts: Mapping[str, Mapping[str, str]] | None = None,
        linears: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        modules_to_not_convert: list[str] | None = None,
        pruning: bool = True,
        quant_method: str = METHOD,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise CorruptFile(f"quantization_config has unknown keys {sorted(unknown)}; use the moesaic that wrote it")
        if format_version != FORMAT_VERSION:
            raise CorruptFile(
                f"quantization_config: format_version is {format_version}, this moesaic reads {FORMAT_VERSION}"
            )
        self.quant_method = quant_method
        self.format_version = format_version
        self.group_size = group_size
        self.symmetric = symmetric
        self.experts = {name: dict(widths) for name, widths in (experts or {}).items()}
        self.linears = dict(linears or _NO_LINEARS)
        self.head = dict(head or _NO_LINEARS)
        self.modules_to_not_convert = list(modules_to_not_convert or [])
        self.pruning = pruning

    def layer_bits(self, name: str, experts: int) -> LayerBits:
        """The widths of one expert layer.

        Raises:
            CorruptFile: not a width for each of its experts.
        """
        try:
            widths = [tuple(int(width) for width in self.experts[name][entry].split()) for entry in ENTRIES]
        except (KeyError, ValueError, AttributeError) as error:
            raise CorruptFile(f"quantization_config: the widths of {name} are malformed ({error})") from None
        for entry, line in zip(ENTRIES, widths, strict=True):
            if len(line) != experts or not set(line) <= set(WIDTHS):
                raise CorruptFile(
                    f"quantization_config: {name} has widths {line} for {entry}; {experts} out of {WIDTHS} are needed"
                )
        return LayerBits(*widths)


@register_quantizer(METHOD)
class MoesaicQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts packed modules into the model that transformers is about to fill."""

    requires_calibration = True
    quantization_config: MoesaicConfig

    _policy: Pruning | None = None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        dtype = kwargs.get("dtype") or model.dtype
        config = self.quantization_config
        files = kwargs.get("checkpoint_files") or []
        if config.pruning and files:  # read before the weights, so that a wrong policy is said at once
            self._policy = _policy_of(Path(files[0]).parent)
        if config.experts:
            layers = {layer.name: layer for layer in find_moe_layers(model, model.config.model_type)}
            for name in config.experts:
                if name not in layers:
                    raise CorruptFile(f"quantization_config names {name}, which the model does not have")
                _replace_experts(model, layers[name], config, dtype)
        for kind in (config.linears, config.head):
            for name in kind["modules"]:
                _replace_linear(model, name, config, kind["bits"], dtype)
                if not config.experts:
                    _expect_marker(model, linear_marker(name))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        """Copy numbers that lie askew in their file; let single tokens and the folder's policy go their way.

        Kernels want numbers aligned; other programs may write them otherwise.
        """
        for module in model.modules():
            for name, tensor in module._buffers.items():
                if tensor is not None and _is_askew(tensor):
                    module._buffers[name] = tensor.clone()
            for parameter in module._parameters.values():
                if parameter is not None and _is_askew(parameter):
                    parameter.data = parameter.data.clone()
        single_token.use(model)
        if self._policy is not None:
            attach(model, self._policy)

    def update_weight_conversions(self, weight_conversions: list[Any], model: PreTrainedModel) -> list[Any]:
        """Packed models use the names of the modules, so that nothing is left to convert."""
        return []

    def is_serializable(self) -> bool:
        """Packed models are files already; copy the folder."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradients."""
        return False


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    pruning: bool = True,
) -> PreTrainedModel:
    """Open a packed model, ready to generate.

    The packed bytes stay in the memory-mapped files; nothing is dequantized.

    Args:
        folder: written by `moesaic compress`.
        dtype: of activations and of what is not packed; "auto" is the source's own.
        device: where to put the model.
        trust_remote_code: run Python code of the folder, as transformers does with the flag of that name.
        pruning: let the skipping policy of the folder, if it has one, decide which experts run; a `"pruning": false` in
            its configuration keeps it off all the same.

    Raises:
        NotACheckpoint: no packed folder there.
        CorruptFile: a damaged one, or one of another format version.
        InvalidPolicy: the folder's skipping policy was made for another model or plan.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotACheckpoint(f"{folder}: no such folder")
    read_manifest(folder)
    return open_model(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code, pruning=pruning)


def open_any(folder: Path, *, trust_remote_code: bool = False, pruning: bool = True) -> PreTrainedModel:
    """Open a packed folder or an ordinary checkpoint, for commands that take both.

    Raises:
        NotACheckpoint: neither.
        CorruptFile: damaged.
    """
    if (folder / MANIFEST).is_file():
        return load(folder, trust_remote_code=trust_remote_code, pruning=pruning)
    if not (folder / "config.json").is_file():
        raise NotACheckpoint(f"{folder}: neither a packed folder ({MANIFEST}) nor a checkpoint (config.json)")
    return open_model(folder, trust_remote_code=trust_remote_code)


def open_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model folder.

    Raises:
        NotACheckpoint: the folder has none.
    """
    if not (folder / "config.json").is_file():
        raise NotACheckpoint(f"{folder}: neither a packed folder ({MANIFEST}) nor a checkpoint (config.json)")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:200]
        raise NotACheckpoint(f"{folder}: no usable tokenizer: {reason}") from None


def open_model(
    folder: Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    pruning: bool = True,
) -> PreTrainedModel:
    """Open a folder with transformers, packed or not, quietly, and fail where it would fill in random weights.

    Raises:
        CorruptFile: tensors are missing or have the wrong shape.
        InvalidPolicy: a packed folder's skipping policy was made for another model or plan.
    """
    config = load_config(folder, trust_remote_code=trust_remote_code)
    packed = getattr(config, "quantization_config", None)
    if isinstance(packed, dict) and packed.get("quant_method") == METHOD:
        packed["pruning"] = pruning and packed.get("pruning", True)
    names = getattr(config, "architectures", None) or []
    found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    remote = {"trust_remote_code": True} if trust_remote_code and found is None else {}
    try:
        model, info = (found or auto).from_pretrained(
            folder, config=config, dtype=dtype, output_loading_info=True, **remote
        )
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip()[:400]
        raise CorruptFile(f"{folder}: transformers cannot load it: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CorruptFile(f"{folder}: no tensor for {missing[0]} (and {len(missing) - 1} more); copy the folder again")
    return model.to(device).eval()


def _is_askew(tensor: torch.Tensor) -> bool:
    """Whether its numbers start between the places where the processor wants them."""
    return not tensor.is_meta and tensor.data_ptr() % tensor.element_size() != 0


def _policy_of(folder: Path) -> Pruning | None:
    """The skipping policy of a packed folder."""
    return read_pruning(folder, read_manifest(folder)) if (folder / PRUNING).is_file() else None


def _replace_experts(model: PreTrainedModel, layer: MoeLayer, config: MoesaicConfig, dtype: torch.dtype) -> None:
    original = model.get_submodule(layer.name)
    layouts = entry_layouts(layer, config.layer_bits(layer.name, layer.experts), config.group_size, config.symmetric)
    packed = PackedExperts(layer, layouts, original, dtype)
    for parameters in [module._parameters for module in original.modules()]:
        parameters.clear()
    _put(model, layer.name, packed)
    _expect_marker(model, marker_tensor(layer))


def _replace_linear(model: PreTrainedModel, name: str, config: MoesaicConfig, bits: int, dtype: torch.dtype) -> None:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise CorruptFile(f"quantization_config names {name}, which the model does not have") from None
    if not isinstance(module, nn.Linear):
        raise CorruptFile(f"quantization_config names {name}, which is a {type(module).__name__}, not a linear layer")
    rows, columns = module.weight.shape
    layout = MatrixLayout(rows, columns, bits, config.group_size, config.symmetric)
    _put(model, name, PackedLinear(layout, bias_dtype=None if module.bias is None else dtype))


def _expect_marker(model: PreTrainedModel, name: str) -> None:
    """The marker makes programs without moesaic stop; here it is expected."""
    ignored = model._keys_to_ignore_on_load_unexpected or set()
    model._keys_to_ignore_on_load_unexpected = {*ignored, f"^{re.escape(name)}$"}


def _put(model: PreTrainedModel, name: str, module: nn.Module) -> None:
    """Replace a submodule.

    Some architectures initialise the weights of a module's children by name, which packed children do not have;
    nothing in the parent needs it, since a parameter missing from the files is an error.
    """
    model.set_submodule(name, module)
    model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True
