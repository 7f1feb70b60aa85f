"""`model=pretrained`: a Hugging Face folder on this disk. Nothing is downloaded and no code of the folder is run."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noisyrl.models.base import LanguageModel, ModelSpec
from noisyrl.spec import InputError, spec
from noisyrl.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEMPLATE_FILE = "chat_template.jinja"
# Names under which tokenizers that declare no padding token still carry one.
_PAD_NAMES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|fim_pad|>", "<|endoftext|>", "<unk>")


@spec
class Pretrained(ModelSpec):
    """A causal LM and its tokenizer, as `save_pretrained` or `hf download` leave them."""

    path: str | None = None
    """Folder with config.json, *.safetensors and the tokenizer's files."""
    hub: str | None = None
    """Where it can be downloaded from; only for the message when it is missing."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Of the weights; auto = as stored. Small updates vanish in 16-bit weights: train in float32 where it fits."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """null = what transformers picks."""

    def check(self, task: Task) -> None:
        """InputError: a file is missing or cut short, and how to get it."""
        folder = self._folder()
        for name in ("config.json", "tokenizer_config.json"):
            if not (folder / name).is_file():
                raise InputError(f"{folder} has no {name}: {self._remedy(folder)}")
        for path in self._weights(folder):
            _check_complete(path, self._remedy(folder))
        # A tokenizer without a tokenizer.json keeps its vocabulary under names of its own kind.
        vocabularies = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
        if not any((folder / name).is_file() for name in vocabularies):
            raise InputError(f"{folder} has no tokenizer (tokenizer.json): {self._remedy(folder)}")
        if not (folder / _TEMPLATE_FILE).is_file() and "chat_template" not in _json(folder / "tokenizer_config.json"):
            raise InputError(
                f"the tokenizer in {folder} has no chat template: use an instruct model, or save one as "
                f"{folder / _TEMPLATE_FILE}"
            )

    def load(self, task: Task) -> LanguageModel:
        """On CPU, in evaluation mode. InputError: the folder cannot be loaded, or is not a whole model."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.check(task)
        folder = self._folder()
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=self.dtype,
                attn_implementation=self.attn_implementation,
                use_safetensors=True,
                output_loading_info=True,
                **local,
            )
        except Exception as error:  # loaders raise what they like: the user needs the folder and the reason
            reason = (str(error).splitlines() or [""])[0]
            raise InputError(f"{folder} cannot be loaded: {type(error).__name__}: {reason}") from error
        model, report = loaded
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise InputError(
                f"the weights in {folder} lack {len(report['missing_keys'])} tensors of the model ({some}, ...): "
                f"{self._remedy(folder)}"
            )
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            raise InputError(f"the tokenizer in {folder} has more tokens than the model: they do not belong together")
        _ensure_pad(tokenizer)
        return LanguageModel(model.eval(), tokenizer, self._origin(folder, model, tokenizer))

    def _folder(self) -> Path:
        if self.path is None:
            raise InputError("model.path is not set: set model.path=FOLDER, a model saved with its tokenizer")
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else f"does not exist (looked for {folder.absolute()})"
            raise InputError(f"model.path={self.path} {what}: {self._remedy(folder)}")
        return folder

    def _remedy(self, folder: Path) -> str:
        return f"get it with `hf download {self.hub or 'ORGANISATION/NAME'} --local-dir {folder}`, or set model.path"

    def _weights(self, folder: Path) -> list[Path]:
        """The weight files the folder should hold. InputError: it holds none."""
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            return [folder / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
        if not (folder / "model.safetensors").is_file():
            found = "pickled weights only, which are not loaded" if any(folder.glob("*.bin")) else "no weights"
            raise InputError(f"{folder} has {found} (model.safetensors is missing): {self._remedy(folder)}")
        return [folder / "model.safetensors"]

    def _origin(self, folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Mapping[str, Any]:
        template = tokenizer.chat_template
        return {
            "source": "pretrained",
            "path": str(self.path),
            "architecture": type(model).__name__,
            "parameters": model.num_parameters(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "config_sha256": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
            "weights_bytes": sum(path.stat().st_size for path in self._weights(folder)),
            "chat_template_sha256": hashlib.sha256(json.dumps(template).encode()).hexdigest(),
            "pad_token": tokenizer.pad_token,
        }


def _check_complete(path: Path, remedy: str) -> None:
    """Compare a safetensors file with the size its header promises. InputError: missing, damaged or cut short."""
    if not path.is_file():
        raise InputError(f"{path} is missing: {remedy}")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size:
                raise ValueError("not a safetensors file")
            header = json.loads(file.read(length))
        promised = 8 + length + max((x["data_offsets"][1] for k, x in header.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged or cut short ({size} bytes, {error}): {remedy}") from error
    if promised != size:
        raise InputError(f"{path} is damaged or cut short ({size} bytes of {promised}): {remedy}")


def _ensure_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a padding token one: a token made for it if there is one, the end token with a word."""
    if tokenizer.pad_token_id is not None:
        return
    known = tokenizer.get_vocab()
    spare = [name for name in _PAD_NAMES if name in known and name != tokenizer.eos_token]
    if not spare:
        # Harmless here: masks are built from what was sampled, never from a token's number.
        warnings.warn(f"the tokenizer has no padding token; its end token {tokenizer.eos_token!r} pads", stacklevel=3)
    tokenizer.pad_token = spare[0] if spare else tokenizer.eos_token


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
