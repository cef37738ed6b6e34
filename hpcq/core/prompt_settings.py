"""Settings of a task's prompts and of its generated texts, as work records carry them.

They are part of content addresses where they are not the defaults.
"""

from __future__ import annotations

from hpcq.core.frozen import dataclass

GenerationValue = bool | int | float | str | tuple[str, ...]
"""Value of a generation argument; several stop sequences are a tuple."""

TemplateValue = bool | int | float | str
"""Value of an argument of a chat template."""

DEFAULT_DATE = "2024-07-26"
"""Day for templates that write the current one: the day that Llama 3's templates write if they cannot read a clock."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How lm-eval makes prompts from documents. The defaults are those of lm-eval's command line (0.4.13).

    Attributes:
        chat_template: Apply the checkpoint's chat template; a string is the name of one of several templates.
        system: System instruction, before the description of the task; without a template, the prompt begins with it.
        fewshot_as_multiturn: Few-shot examples are turns of a chat; otherwise the template gets one user message.
        template_args: Arguments of the template, such as enable_thinking, sorted by name.
        think_end_token: Text that ends the reasoning of an answer. Only what follows is the answer; stop sequences
            apply to that part alone.
        date: Day that a template may write into prompts, as YYYY-MM-DD; None: `DEFAULT_DATE`.
    """

    chat_template: bool | str = False
    system: str | None = None
    fewshot_as_multiturn: bool = False
    template_args: tuple[tuple[str, TemplateValue], ...] = ()
    think_end_token: str | None = None
    date: str | None = None

    @property
    def applies_template(self) -> bool:
        """Whether prompts are chats, so that their text depends on the checkpoint."""
        return self.chat_template is not False


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How texts are generated, where it differs from the definition of the task.

    Attributes:
        arguments: Generation arguments that replace those of the definition, sorted by name (lm-eval's --gen_kwargs).
        repeats: Texts per prompt; None: as the definition says.
        seed: Seed of the random numbers; None: that of the evaluation.
    """

    arguments: tuple[tuple[str, GenerationValue], ...] = ()
    repeats: int | None = None
    seed: int | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether the arguments request sampling. If they do not, the task's definition still may."""
        return dict(self.arguments).get("do_sample") is True


LM_EVAL_PROMPT = Prompt()
"""Prompts as lm-eval makes them by default."""

AS_DEFINED = Sampling()
"""Generated texts as the definition of the task says."""
