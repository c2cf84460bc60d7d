"""What the files of a tokenizer's folder say, as transformers reads them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tokenizers

from jaxvl import paths
from jaxvl.aliases import Json
from jaxvl.config import ConfigError
from jaxvl.data import text_files

T = TypeVar("T")
# The classes of tokenizers that transformers takes for a model whose folder names none.
_MODEL_CLASSES = {
    "clip": "CLIPTokenizer",
    "siglip": "SiglipTokenizer",
    "siglip2": "Siglip2Tokenizer",
    "align": "BertTokenizer",
}
# Tokens that a folder has beside its vocabulary; the newer name is the first.
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclasses.dataclass(frozen=True)
class TokenizerFolder:
    """A folder with a tokenizer's files.

    Attributes:
      path: the folder, local or remote.
      settings: of tokenizer_config.json; empty where there is none.
      special: of special_tokens_map.json, the same.
      json_name: of its tokenizer.json.
    """

    path: paths.Path
    settings: Mapping[str, Any]
    special: Mapping[str, Any]
    json_name: str = "tokenizer.json"

    @classmethod
    def read(cls, path: paths.Path) -> TokenizerFolder:
        """Raises ConfigError where a file is not what its name says."""
        return cls(
            path,
            _optional(path / "tokenizer_config.json"),
            _optional(path / "special_tokens_map.json"),
        )

    def has(self, *names: str) -> bool:
        """Whether all of these files are there."""
        return all(paths.is_file(self.path / name) for name in names)

    def tokenizer_class(self) -> str:
        """Name, without `Fast`, of the class that transformers' `AutoTokenizer` takes; empty where
        nothing says it."""
        config = _optional(self.path / "config.json")
        model_type = config.get("model_type")
        if (
            model_type == "siglip2"
        ):  # published ones name Gemma's, and transformers takes SigLIP2's all the same
            return _MODEL_CLASSES[model_type]
        named = (
            self.settings.get("tokenizer_class")
            or config.get("tokenizer_class")
            or _MODEL_CLASSES.get(model_type)
        )
        return named.removesuffix("Fast") if isinstance(named, str) else ""

    def special_token(self, name: str, default: str | None = None) -> str | None:
        """Text of a special token, from either of the files that may say it."""
        for values in (self.settings, self.special):
            token = values.get(name)
            if token is not None:
                return _text(token)
        return default

    def text(self, name: str, read: Callable[[bytes], T]) -> T:
        """A text file through `read`. Raises ConfigError where it is not UTF-8."""
        try:
            return read(paths.read_bytes(self.path / name))
        except UnicodeDecodeError as error:
            raise ConfigError(
                "tokenizer", f"{self.path / name}: is not a text file ({error})"
            ) from None

    def tokenizer_json(self) -> tuple[tokenizers.Tokenizer, bytes]:
        """The tokenizer of tokenizer.json, and the file. Raises ConfigError."""
        content = self.text(self.json_name, text_files.decode).encode()
        try:
            return tokenizers.Tokenizer.from_buffer(content), content
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(
                "tokenizer", f"{self.path / self.json_name}: is not a tokenizer ({error})"
            ) from None

    def add_tokens(self, model: tokenizers.Tokenizer) -> None:
        """Gives a tokenizer that was made from a vocabulary the tokens that the folder has beside
        it.

        Raises:
          ConfigError: one that gets another id than the folder says.
        """
        ids, fields = self._added_tokens()
        special = self._extra_tokens()
        named = {self.special_token(name) for name in _NAMED}
        for text in sorted(ids, key=ids.get):
            given = fields.get(text, {})
            is_special = given.get("special", text in special or text in named)
            options = {
                k: v
                for k, v in given.items()
                if k in ("single_word", "lstrip", "rstrip", "normalized")
            }
            token = tokenizers.AddedToken(
                text, special=is_special, **{"normalized": not is_special, **options}
            )
            (model.add_special_tokens if is_special else model.add_tokens)([token])
            if model.token_to_id(text) != ids[text]:
                raise ConfigError(
                    "tokenizer",
                    f"{self.path}: {text!r} gets the id {model.token_to_id(text)}, but the "
                    f"folder says {ids[text]}",
                )
        late = [_text(token) for token in self.special.get("additional_special_tokens") or []]
        model.add_special_tokens([text for text in [*special, *late] if text not in ids])

    def _added_tokens(self) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
        """(text -> id, text -> its options where the folder has them) of the tokens that were
        added."""
        decoder = self.settings.get("added_tokens_decoder") or {}
        if not decoder:
            ids = _optional(self.path / "added_tokens.json")
            if not all(isinstance(i, int) for i in ids.values()):
                raise ConfigError(
                    "tokenizer",
                    f"{self.path / 'added_tokens.json'}: must hold the id of each token",
                )
            return ids, {}
        if not isinstance(decoder, dict) or not all(i.isdecimal() for i in decoder):
            raise ConfigError(
                "tokenizer",
                f"{self.path / 'tokenizer_config.json'}: added_tokens_decoder: must hold a "
                f"token for each id",
            )
        ids = {_text(token): int(i) for i, token in decoder.items()}
        return ids, {_text(token): token for token in decoder.values() if isinstance(token, dict)}

    def _extra_tokens(self) -> list[str]:
        """Special tokens beside the named ones.

        A token of added_tokens.json that special_tokens_map.json alone lists, under the older name,
        is an ordinary word to transformers.
        """
        for listed in (*(self.settings.get(name) for name in _EXTRA), self.special.get(_EXTRA[0])):
            if isinstance(listed, list) and listed:
                return [_text(token) for token in listed]
        return []


def read_object(path: paths.Path) -> dict[str, Json]:
    """The object of a JSON file. Raises ConfigError where it holds none."""
    try:
        values = json.loads(text_files.decode(paths.read_bytes(path)))
    except (ValueError, RecursionError) as error:
        raise ConfigError("tokenizer", f"{path}: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError("tokenizer", f"{path}: must hold a JSON object")
    return values


def _optional(path: paths.Path) -> dict[str, Json]:
    """A JSON file's object; empty where there is no file."""
    return read_object(path) if paths.is_file(path) else {}


def _text(token: Any) -> str:
    """Of a token that is written as a text, or as its text and options. Raises ConfigError for
    anything else."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ConfigError("tokenizer", f"token {token!r}: must be a text, or have it as content")
    return text
