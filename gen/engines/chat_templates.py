"""Chats as a model's own template writes them: its settings, templates without a system role, models without any.

Some templates refuse a system message and some drop it without a word. Its text then goes before the first question,
and that is said once.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

from synthclip_jax.config.generation import Captions, Recaption
from synthclip_jax.errors import UserError

Conversation = list[dict[str, Any]]
_PROBE = "synthclip system probe"


class TemplateError(UserError, ValueError):
    """A model's chat template is missing or cannot be used; the text says what to change."""


def template_settings(settings: Captions | Recaption) -> dict[str, Any]:
    """`chat_template_kwargs` of `config.gen.captions` or the like as a mapping."""
    return dict(settings.chat_template_kwargs)


def template_identity(settings: Captions | Recaption) -> dict[str, Any]:
    """What the plan says of it: nothing where nothing is set, so that plans of before still agree."""
    chosen = template_settings(settings)
    return {"chat_template_kwargs": chosen} if chosen else {}


class ChatTemplate:
    """Writes chats as prompts with the template of a tokenizer or processor.

    Args:
      source: what has `apply_chat_template`: a tokenizer or a processor of transformers.
      settings: `config.gen.captions` or the like.
      section: its name, for errors.

    Raises:
      TemplateError: the model has no chat template, as base models have none.
    """

    def __init__(self, source: Any, settings: Captions | Recaption, section: str = "gen.captions"):
        self._source, self._settings, self._section = source, settings, section
        self._options = template_settings(settings)
        if getattr(source, "chat_template", "unknown") in (None, "", {}) and not _has_own(source):
            raise TemplateError(
                f"{section}.model: {settings.model!r} has no chat template: it is a base model, which continues texts"
                " and answers no questions. Give an instruction-tuned model, such as one whose name ends with"
                " -Instruct, -Chat or -it"
            )

    def __call__(self, conversation: Conversation) -> str:
        """The prompt of one chat.

        Raises:
          TemplateError: the template refuses the chat.
        """
        return self._written(self.accepted(conversation))

    def accepted(self, conversation: Conversation) -> Conversation:
        """The chat as the template takes it: with its system text in the first question, where there is no such role.

        Raises:
          TemplateError: the template refuses the chat.
        """
        if conversation[0]["role"] == "system" and not self._knows_system:
            return merged(conversation)
        return conversation

    @functools.cached_property
    def _knows_system(self) -> bool:
        """Whether the template writes a system message down."""
        question: Conversation = [{"role": "user", "content": "A question."}]
        try:
            known = _PROBE in self._write([{"role": "system", "content": _PROBE}, *question])
        except Exception as error:
            self._written(question)  # raises what has nothing to do with the system message
            why = f" ({_first_line(error)})"
        else:
            why = ""
        if why or not known:
            print(
                f"{self._section}: the chat template of {self._settings.model!r} has no system role{why}: the system"
                " message is put before the first question",
                file=sys.stderr,
                flush=True,
            )
            return False
        return True

    def _written(self, conversation: Conversation) -> str:
        try:
            return self._write(conversation)
        except Exception as error:
            raise TemplateError(
                f"{self._section}.model: the chat template of {self._settings.model!r} cannot write the prompt"
                f" ({_first_line(error)}). Check {self._section}.chat_template_kwargs, or take another model"
            ) from error

    def _write(self, conversation: Conversation) -> str:
        return self._source.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True, **self._options
        )


def merged(conversation: Sequence[dict[str, Any]]) -> Conversation:
    """A chat whose system text stands before the first question."""
    system, first, *rest = conversation
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _has_own(source: Any) -> bool:
    """Whether the tokenizer writes chats without a template, as Mistral's own does."""
    return type(source).__module__.partition(".")[0] not in ("transformers", "tokenizers")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
