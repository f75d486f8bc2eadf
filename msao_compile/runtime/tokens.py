"""Text to tokens and back with a checkpoint's own tokenizer files and chat template, without transformers."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msao_compile.errors import InputError, PromptError
from msao_compile.runtime.chat_template import ChatTemplate, chosen_source

if TYPE_CHECKING:
    import tokenizers

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens a chat template may name (transformers' SPECIAL_TOKENS_ATTRIBUTES)."""

CLEANUP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"))
CLEANUP_CONTRACTIONS = ("n't", "'m", "'s", "'ve", "'re")
CLEANUP_REACH_CHARACTERS = 40
"""Ten replacements of at most four characters: text further from the end than this cannot change any more."""


class StreamDecoder(Protocol):
    """Gives text as tokens arrive; what it gave, joined, equals `Tokenizer.decode` of all tokens."""

    def push(self, token_id: int) -> str:
        """The text that is certain after this token; often empty, never half a character."""

    def flush(self) -> str:
        """The rest of the text; the decoder is finished."""


class Tokenizer:
    """A checkpoint's tokenizer, special tokens and chat template; build it with `Tokenizer.load`."""

    def __init__(self, backend: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
        self._backend = backend
        self._files = files
        self._special = files.special_tokens()
        _add_missing(backend, files, self._special)
        _set_sequence_ends(backend, files.config, self._special)
        self._cleans_up = bool(files.config.get("clean_up_tokenization_spaces")) and _model_name(backend) != "BPE"
        byte_ids = (backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        self._byte_ids = frozenset(token_id for token_id in byte_ids if token_id is not None)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def load(cls, folder: Path, names: Collection[str]) -> Tokenizer:
        """Read, of the files called `names`, tokenizer.json and, where listed, tokenizer_config.json,
        special_tokens_map.json, generation_config.json and the chat template (chat_template.jinja, then
        chat_template.json, the processor's, then the tokenizer's own entry, as transformers prefers them).

        Raises:
            InputError: tokenizer.json is missing, or a file is damaged.
        """
        from tokenizers import Tokenizer as Backend

        files = TokenizerFiles.read(folder, names)
        try:
            backend = Backend.from_buffer(files.tokenizer_json)
        except ValueError as error:
            raise InputError(f"{files.folder / 'tokenizer.json'} is damaged ({error}); copy it again.") from error
        backend.no_truncation()
        backend.no_padding()
        return cls(backend, files)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included: `len(tokenizer)` in transformers. Logits may be wider."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token, in the vocabulary's own spelling."""
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)), default=0)

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end generation: generation_config.json's, or else the tokenizer's own."""
        given = self._files.generation.get("eos_token_id")
        if given is not None:
            return tuple(int(token_id) for token_id in (given if isinstance(given, list) else [given]))
        own = self._backend.token_to_id(self._special["eos_token"]) if "eos_token" in self._special else None
        return () if own is None else (own,)

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint says how a conversation becomes a prompt."""
        return self._files.chat_template is not None

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The prompt the checkpoint's chat template makes of a conversation.

        Raises:
            PromptError: there are no messages, no template, or the template refuses the messages.
        """
        special = {name: token for name, token in self._special.items() if name in SPECIAL_NAMES}
        return self._template.render(messages, add_generation_prompt, special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token numbers of a prompt, with the special tokens the tokenizer puts around every sequence.

        Raises:
            PromptError: the text is empty or holds half of a surrogate pair.
        """
        if not text:
            raise PromptError("The prompt is empty; give at least one character.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"The prompt is not valid Unicode: character {error.start} is the lone surrogate"
                f" U+{ord(text[error.start]):04X}; remove it or decode the text as UTF-8."
            ) from error
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_rendered(self, text: str) -> list[int]:
        """Token numbers of what `render` gave: like `encode`, but a BOS the template wrote is not put twice.

        Source: ProcessorMixin.apply_chat_template with tokenize=True.

        Raises:
            PromptError: as `encode`.
        """
        bos = self._special.get("bos_token")
        return self.encode(text, add_special_tokens=not (bos and text.startswith(bos)))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token numbers; bytes that are not UTF-8 become U+FFFD."""
        text = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return _clean_up(text) if self._cleans_up else text

    def stream_decoder(self, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder for one answer."""
        if self._cleans_up:
            return _LaggingDecoder(self, skip_special_tokens)
        return _WindowDecoder(self, skip_special_tokens)

    def is_silent(self, token_id: int, skip_special_tokens: bool = True) -> bool:
        """Decoding gives nothing for this token, as if it were not there."""
        if skip_special_tokens and token_id in self._special_ids:
            return True
        return self._backend.id_to_token(token_id) is None

    def is_byte(self, token_id: int) -> bool:
        """The token is one byte of a character the vocabulary lacks (byte fallback)."""
        return token_id in self._byte_ids

    @cached_property
    def _template(self) -> ChatTemplate:
        where, source = str(self._files.folder), self._files.chat_template
        if source is None:
            raise PromptError(f"{where} has no chat template; give the prompt as text instead of messages.")
        return ChatTemplate(source, where)


def expand(text: str, placeholder: str, expansions: Sequence[str]) -> str:
    """Replace the n-th placeholder by the n-th expansion.

    Raises:
        PromptError: the numbers of placeholders and expansions differ.
    """
    pieces = text.split(placeholder) if placeholder else [text]
    found = len(pieces) - 1
    if found != len(expansions):
        raise PromptError(
            f"The prompt has {found} placeholder{'s'[: found != 1]} {placeholder!r} for {len(expansions)} "
            f"picture{'s'[: len(expansions) != 1]}; write one for each picture."
        )
    return pieces[0] + "".join(new + piece for new, piece in zip(expansions, pieces[1:], strict=True))


@dataclass(frozen=True)
class TokenizerFiles:
    """What a tokenizer folder holds, read but not interpreted."""

    folder: Path
    tokenizer_json: bytes
    config: Mapping[str, Any]
    special_map: Mapping[str, Any]
    generation: Mapping[str, Any]
    chat_template: str | None

    @classmethod
    def read(cls, folder: Path, names: Collection[str]) -> TokenizerFiles:
        """Read the files of a folder that are called `names`; whatever else lies there is not looked at.

        Raises:
            InputError: tokenizer.json is missing, or a file is not JSON.
        """
        if "tokenizer.json" not in names:
            raise InputError(f"{folder} has no listed tokenizer.json; build from a checkpoint with a fast tokenizer.")
        config = read_json(folder / "tokenizer_config.json", names)
        return cls(
            folder=folder,
            tokenizer_json=_read(folder / "tokenizer.json"),
            config=config,
            special_map=read_json(folder / "special_tokens_map.json", names),
            generation=read_json(folder / "generation_config.json", names),
            chat_template=_chat_template(folder, names, config),
        )

    def special_tokens(self) -> dict[str, str]:
        """Named special tokens, the tokenizer's own entries over special_tokens_map.json's."""
        named = {**self.special_map, **{name: token for name, token in self.config.items() if token is not None}}
        extra = self.config.get("extra_special_tokens")
        named.update(extra if isinstance(extra, Mapping) else {})
        contents = {name: _content(token) for name, token in named.items() if name.endswith("_token")}
        return {name: content for name, content in contents.items() if content is not None}

    def added_tokens(self) -> list[Mapping[str, Any]]:
        """The entries of `added_tokens_decoder`, in the order of their numbers."""
        added = self.config.get("added_tokens_decoder") or {}
        return [added[number] for number in sorted(added, key=int)]


class _WindowDecoder:
    """Decodes the last few tokens twice, with and without the new ones: the difference is new text.

    Text is held back while it ends in U+FFFD (bytes of a character still missing) and while the last token is a
    byte-fallback token, since one invalid byte spoils the whole run of them. Silent tokens do not end such a run.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        if self._tokenizer.is_silent(token_id, self._skip):
            return ""
        self._pending.append(token_id)
        if self._tokenizer.is_byte(token_id):
            return ""
        text = self._new_text()
        if not text or text.endswith("\ufffd"):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        text = self._new_text()
        self._context, self._pending = [], []
        return text

    def _new_text(self) -> str:
        known = self._tokenizer.decode(self._context, self._skip) if self._context else ""
        return self._tokenizer.decode([*self._context, *self._pending], self._skip)[len(known) :]


class _LaggingDecoder:
    """For tokenizers whose clean-up rewrites earlier text: decodes everything, stays behind the rewriting's reach."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._given_characters = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        return self._rest(CLEANUP_REACH_CHARACTERS)

    def flush(self) -> str:
        return self._rest(0)

    def _rest(self, held_characters: int) -> str:
        text = self._tokenizer.decode(self._ids, self._skip)
        end = max(len(text) - held_characters, self._given_characters)
        new, self._given_characters = text[self._given_characters : end], end
        return new


def _clean_up(text: str) -> str:
    for old, new in CLEANUP:
        text = text.replace(old, new)
    for contraction in CLEANUP_CONTRACTIONS:
        text = text.replace(" " + contraction, contraction)
    return text


def _model_name(backend: tokenizers.Tokenizer) -> str:
    return type(backend.model).__name__


def _add_missing(backend: tokenizers.Tokenizer, files: TokenizerFiles, special: Mapping[str, str]) -> None:
    """Add tokens that only tokenizer_config.json knows, with its flags, as transformers' TokenizersBackend does."""
    from tokenizers import AddedToken

    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for entry in files.added_tokens():
        token = AddedToken(entry["content"], **{flag: bool(entry[flag]) for flag in flags if flag in entry})
        if repr(token) not in known:
            backend.add_tokens([token])
    extra = files.config.get("extra_special_tokens") or files.config.get("additional_special_tokens") or []
    for content in (*special.values(), *(map(_content, extra) if isinstance(extra, list) else ())):
        if content is not None and backend.token_to_id(content) is None:
            backend.add_tokens([AddedToken(content, special=True)])


def _set_sequence_ends(backend: tokenizers.Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> None:
    """Where tokenizer_config.json says add_bos_token or add_eos_token, that wins over tokenizer.json."""
    from tokenizers.processors import TemplateProcessing

    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    bos = special.get("bos_token") if config.get("add_bos_token") else None
    eos = special.get("eos_token") if config.get("add_eos_token") else None
    backend.post_processor = TemplateProcessing(
        single=" ".join(piece for piece in (bos, "$A", eos) if piece),
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token],
    )


def _content(token: object) -> str | None:
    """The text of a special token, written as text or as a table with its flags."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def read_json(path: Path, names: Collection[str]) -> Mapping[str, Any]:
    """The JSON object in a file; an empty one where its name is not among `names`.

    Raises:
        InputError: it cannot be read or does not hold a JSON object.
    """
    if path.name not in names:
        return {}
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); copy it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object; copy it again.")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); copy it again.") from error


def _chat_template(folder: Path, names: Collection[str], config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.name in names:
        try:
            return _read(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error}); copy it again.") from error
    holders = (*(read_json(folder / f"{name}.json", names) for name in ("chat_template", "processor_config")), config)
    sources = (chosen_source(holder.get("chat_template")) for holder in holders)
    return next((source for source in sources if source is not None), None)
