"""Chat template of a checkpoint: read from its tokenizer, recorded in the run's folder, rendered as lm-eval does.

Worker and merge render the same record, so that their requests cannot differ. The merge needs no checkpoint.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcq.catalog.chat_templates import DEFAULT_TEMPLATE
from hpcq.core.errors import SetupError, UserInputError, WorkerError
from hpcq.core.files import read_regular, write_text
from hpcq.core.frozen import dataclass
from hpcq.core.json_records import InvalidRecordError, from_json, to_json
from hpcq.core.paths import chat_template_record
from hpcq.core.prompt_settings import DEFAULT_DATE, Prompt
from hpcq.core.sentences import first_line
from hpcq.core.work_records import EvaluateWork

_SAMPLE = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]

_LOG = logging.getLogger(__name__)

Renderer = Callable[..., str]
"""Turns a list of messages into a prompt, with lm-eval's signature."""


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """Chat templates of a checkpoint, and the special tokens that they may name.

    Attributes:
        templates: Jinja templates by name.
        special_tokens: Special tokens by name, such as bos_token.
        tokenizer_name: Name of the tokenizer, as lm-eval records it.
    """

    templates: tuple[tuple[str, str], ...]
    special_tokens: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    tokenizer_name: str = ""

    def select(self, requested: bool | str) -> str:  # noqa: FBT001 (the setting of the manifest)
        """Return the template of a name, or the default one.

        Raises:
            UserInputError: There is none.
        """
        known = dict(self.templates)
        name = requested if isinstance(requested, str) else DEFAULT_TEMPLATE
        if name not in known:
            raise UserInputError(
                f"prompt.chat_template: {self.tokenizer_name} has no chat template '{name}': choose"
                f" {' or '.join(sorted(known))}."
            )
        return known[name]

    def digest(self, requested: bool | str) -> str:  # noqa: FBT001 (as above)
        """Return the SHA-256 of a template, as lm-eval records it (chat_template_sha)."""
        return hashlib.sha256(self.select(requested).encode()).hexdigest()

    def renderer(self, prompt: Prompt) -> Renderer:
        """Return the function that renders chats with the settings of `prompt`, as HFLM's `apply_chat_template` does.

        A template that rejects the system role gets the chat without it, as in lm-eval; the log says so once.
        """
        template = self.select(prompt.chat_template)
        day = datetime.date.fromisoformat(prompt.date or DEFAULT_DATE)
        # transformers gives templates the clock under this name: prompts would change from day to day.
        variables = {**_plain(self.special_tokens), "strftime_now": day.strftime, **dict(prompt.template_args)}
        has_warned = False

        def render(chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: FBT001, FBT002 (lm-eval's signature)
            nonlocal has_warned
            import jinja2

            try:
                return _render(template, chat_history, add_generation_prompt, variables)
            except jinja2.TemplateError as error:
                rest = [message for message in chat_history if message["role"] != "system"]
                if len(rest) == len(chat_history) or not rest:
                    raise _template_error(self.tokenizer_name, error) from error
            try:
                rendered = _render(template, rest, add_generation_prompt, variables)
            except jinja2.TemplateError as error:
                raise _template_error(self.tokenizer_name, error) from error
            if not has_warned:
                _LOG.warning(
                    "The chat template rejects the system role: prompts have no system message, as in lm-eval."
                )
                has_warned = True
            return rendered

        return render


def applies_template(work: EvaluateWork) -> bool:
    """Return whether the requests of `work` depend on the checkpoint's chat template."""
    return not work.is_synthetic and any(task.prompt.applies_template for task in work.tasks)


def load_chat_template(work: EvaluateWork) -> ChatTemplate | None:
    """Read the chat template from the checkpoint of `work`, and record it in the run's folder; None: none is applied.

    Raises:
        SetupError: The checkpoint has no tokenizer.
        UserInputError: The tokenizer has no chat template, or renders chats with its own code.
    """
    if not applies_template(work):
        return None
    chat = read_chat_template(work)
    record = chat_template_record(Path(work.segments_path).parent, work.variant)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_text(record, to_json(chat) + "\n")
    return chat


def recorded_chat_template(work: EvaluateWork, segments: Path) -> ChatTemplate | None:
    """Return the chat template that the workers of `work` recorded, or else that of the checkpoint; None: none applies.

    Args:
        work: The evaluation.
        segments: Folder of the run's segments.

    Raises:
        SetupError: There is neither a record nor a checkpoint.
        UserInputError: As in `load_chat_template`.
    """
    if not applies_template(work):
        return None
    path = chat_template_record(segments, work.variant)
    try:
        return from_json(ChatTemplate, read_regular(path))
    except FileNotFoundError:
        pass
    except (OSError, InvalidRecordError) as error:
        raise SetupError(
            f"{path}: the record of the chat template cannot be read ({first_line(error)}). Remove it: the merge then"
            " reads the template from the checkpoint."
        ) from error
    try:
        return read_chat_template(work)
    except SetupError as error:
        raise SetupError(
            f"{work.variant.id}: its prompts need the chat template of {work.checkpoint_path}, which is neither there"
            f" nor recorded in {path} ({first_line(error).rstrip('.')}). Merge again when the evaluation has begun."
        ) from error


def template_provenance(work: EvaluateWork, chat: ChatTemplate | None) -> dict[str, str]:
    """Return the attributes of a merged variant: SHA-256 of its chat templates by setting, and its tokenizer's name."""
    if chat is None:
        return {}
    requested = dict.fromkeys(task.prompt.chat_template for task in work.tasks if task.prompt.applies_template)
    digests = {json.dumps(one): chat.digest(one) for one in requested}
    return {"chat_templates": json.dumps(digests, sort_keys=True), "tokenizer_name": chat.tokenizer_name}


def read_chat_template(work: EvaluateWork) -> ChatTemplate:
    """Read the chat template from the tokenizer of the checkpoint, with the errors of `load_chat_template`."""
    from hpcq.evaluate.backends.transformers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(work)
    found = getattr(tokenizer, "chat_template", None)
    if not found:
        raise UserInputError(
            f"prompt.chat_template: the tokenizer of {work.checkpoint_path} has no chat template, as is usual for base"
            " models. Set prompt.chat_template = false, or add chat_template.jinja to the model's folder."
        )
    templates = found if isinstance(found, dict) else {DEFAULT_TEMPLATE: found}
    chat = ChatTemplate(
        templates=tuple(sorted(templates.items())),
        special_tokens=_hashable(tokenizer.special_tokens_map),
        tokenizer_name=str(tokenizer.name_or_path).replace("/", "__"),
    )
    _check_rendering(chat, tokenizer, work.checkpoint_path)
    return chat


def _check_rendering(chat: ChatTemplate, tokenizer: Any, name: str) -> None:
    """Check on a sample that the tokenizer renders chats with its template and nothing else.

    Raises:
        UserInputError: It does not.
    """
    import jinja2

    if DEFAULT_TEMPLATE not in dict(chat.templates):
        return
    try:
        own = tokenizer.apply_chat_template(_SAMPLE, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateError:
        return  # the template refuses the sample; lm-eval's prompts have other turns
    if own != _render(chat.select(DEFAULT_TEMPLATE), _SAMPLE, True, _plain(chat.special_tokens)):  # noqa: FBT003 (transformers' argument)
        raise UserInputError(
            f"prompt.chat_template: the tokenizer of {name} renders chats with its own code, which hpcq cannot record."
            " Set prompt.chat_template = false."
        )


def _render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,  # noqa: FBT001 (transformers' argument)
    variables: Mapping[str, Any],
) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        conversations=[list(messages)],
        chat_template=template,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
        **variables,
    )
    return str(rendered[0])


def _template_error(name: str, error: Exception) -> WorkerError:
    return WorkerError(
        f"{name}: its chat template rejects the prompts of the task: {first_line(error)}."
        " Change prompt.system or prompt.fewshot_as_multiturn, or set prompt.chat_template = false."
    )


def _hashable(tokens: Mapping[str, Any]) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    plain = {
        name: tuple(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in tokens.items()
    }
    return tuple(sorted(plain.items()))


def _plain(tokens: tuple[tuple[str, str | tuple[str, ...]], ...]) -> dict[str, str | list[str]]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in tokens}
