"""A checkpoint's chat template, rendered in Jinja's sandbox with the settings transformers gives it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msao_compile.errors import PromptError

if TYPE_CHECKING:
    import jinja2

REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template's expressions can raise besides Jinja's own errors."""


class ChatTemplate:
    """One template, compiled once; `where` is how errors call its folder.

    Raises:
        PromptError: the template's own syntax is wrong.
    """

    def __init__(self, source: str, where: str) -> None:
        from jinja2 import TemplateError

        self._where = where
        try:
            self._template = _compile(source)
        except TemplateError as error:
            raise PromptError(f"The chat template of {where} cannot be compiled ({error}); correct it.") from error

    def render(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, special_tokens: Mapping[str, str]
    ) -> str:
        """The prompt of a conversation; the template sees plain data only.

        Raises:
            PromptError: there are no messages, or the template refuses them.
        """
        from jinja2 import TemplateError

        if not messages:
            raise PromptError("The conversation has no messages; give at least one.")
        try:
            return self._template.render(
                messages=[plain_message(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **special_tokens,
            )
        except TemplateError as error:
            raise PromptError(f"The chat template of {self._where} refused the messages: {error}.") from error
        except TEMPLATE_FAULTS as error:
            raise PromptError(
                f"The chat template of {self._where} failed on the messages ({error!r}); check their fields."
            ) from error


def chosen_source(given: object) -> str | None:
    """The template text of a `chat_template` entry: itself, or the one named `default` of several."""
    if isinstance(given, list):
        given = {entry["name"]: entry["template"] for entry in given}
    if isinstance(given, Mapping):
        given = given.get("default")
    return given if isinstance(given, str) else None


def plain_message(message: object) -> dict[str, Any]:
    """A message as plain data: no nulls, OpenAI's image_url blocks as image blocks, one name for reasoning."""
    if not isinstance(message, Mapping):
        raise PromptError(f"A message is a {type(message).__name__}; give a mapping with role and content.")
    plain: dict[str, Any] = {key: _plain(value) for key, value in message.items() if value is not None}
    if isinstance(plain.get("content"), list):
        plain["content"] = [_image_block(block) for block in plain["content"]]
    reasoning = next((plain[name] for name in REASONING_NAMES if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _image_block(block: Any) -> Any:
    if not isinstance(block, dict) or block.get("type") != "image_url" or "image_url" not in block:
        return block
    given = block["image_url"]
    return {"type": "image", "url": given.get("url", "") if isinstance(given, dict) else given}


def _plain(value: object) -> Any:
    """Plain JSON types only, so that a template meets no object with methods; others become their type's name."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _compile(source: str) -> jinja2.Template:
    """Compile with the settings of transformers.utils.chat_template_utils._cached_compile_jinja_template."""
    from jinja2 import ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raiser(), strftime_now=_strftime_now, dict=_TemplateDict(), namespace=_namespace()
    )
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which a prompt must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class _TemplateDict:
    """`dict` for templates, without the class behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raiser() -> Callable[[str], None]:
    from jinja2 import TemplateError

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    return raise_exception


def _generation_tag() -> type[jinja2.ext.Extension]:
    """`{% generation %}` marks what a model is trained on; here its body is rendered as it is."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        def __init__(self, environment: jinja2.Environment) -> None:
            super().__init__(environment)
            self.tags = {"generation"}

        def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

        def _body(self, caller: Callable[[], str]) -> str:
            return caller()

    return GenerationTag


def _namespace() -> type[jinja2.utils.Namespace]:
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class TemplateNamespace(Namespace):
        """Jinja's namespace without underscore names, which reach Python's internals."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, values = args[0], dict(*args[1:], **kwargs)
            for name in values:
                TemplateNamespace._check(name)
            Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            TemplateNamespace._check(name)
            Namespace.__setitem__(self, name, value)

        @staticmethod
        def _check(name: object) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a template cannot store the underscore name {name!r} on a namespace")

    return TemplateNamespace
