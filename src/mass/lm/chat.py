"""Encode prompts and answers as a model expects them, and find the token that ends an answer.

The end token is not looked up but found from the chat template: an assistant's turn is rendered, and the first special
token after its text ends it. For Llama 3 that is `<|eot_id|>`, for Gemma `<end_of_turn>`, for Phi `<|end|>`, whatever
the tokenizer calls its end token. Without a template the tokenizer's own end token is used (docs/adr/0009).

Tokens depend on the text before them (a sentencepiece tokenizer writes "▁4" at the start of a text and "4" after a line
end). So the end of the prompt and the answer are encoded together, and the answer's tokens are cut out of the result.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from datetime import date
from typing import Any

from mass.errors import ModelError
from mass.lm.prompts import Prompts

Turn = tuple[str, str]
"""(role, text) of one message in a conversation."""

_MARK = "Mark7"
"""A text that is searched for in what a template renders; no template contains it."""
_NOW = re.compile(r"strftime_now\(\s*(?P<quote>[\"'])(?P<form>.*?)(?P=quote)\s*\)")
_THINK = re.compile(r"<think>\s*\Z")
_ENCODING = threading.Lock()
"""Held while a text is encoded. Whether special tokens in it count as text is set at the tokenizer itself, which views
of a model share: another thread that encodes with the other setting would change it in between."""
_ANCHOR_CHARS = 16
"""Characters of a prompt's end that are encoded together with the text after it."""


class PromptTokens:
    """The encoding of one set of prompts by one tokenizer."""

    def __init__(self, tokenizer: Any, name: str, prompts: Prompts, end_ids: Sequence[int]) -> None:
        """Find out what the chat template does. `end_ids` are the end tokens of the model's generation configuration.

        Raises ModelError for a tokenizer without an end token, or with a chat template that cannot be used.
        """
        self._tokenizer, self._name, self._prompts = tokenizer, name, prompts
        self._template = self._dated_template() if prompts.chat else None
        self._knows_system: bool | None = None
        self.answer_prefix = prompts.answer_prefix
        self._closing = list[int]()
        """Tokens that close the thinking block which some templates always open."""
        end, tail = None, prompts.solve.rpartition("{problem}")[2][-_ANCHOR_CHARS:]
        if prompts.chat:
            end, tail, gap = self._answer_form()
            self.answer_prefix = prompts.answer_prefix or gap
        self.end_id = self._end_id(end, end_ids)
        """Token that ends an answer or a practice example."""
        self._tails = (tail, tail + prompts.opens if prompts.chat else prompts.synthesis.rpartition("{problem}")[2])

    # --- prompts

    def plain(self, text: str) -> list[int]:
        """Encode a plain text, with the tokenizer's start token if it has one. Special tokens in it count as text."""
        ids = self._split(text)
        ends = self._tokenizer.eos_token_id  # some tokenizers are configured to end every text
        return ids[:-1] if len(ids) > 1 and ids[-1] == ends != ids[0] else ids

    def chat(self, turns: Sequence[Turn]) -> list[int]:
        """Encode a conversation up to the point where the model's turn begins. The template writes the start token.

        A system message in the conversation takes the place of the prompts' own. Special tokens in the texts count as
        text, if this version of transformers can distinguish them.
        """
        options: dict[str, Any] = {"sanitize_control_tokens": True} if _can_sanitise(self._tokenizer) else {}
        encoded = self._apply(self._messages(turns), add_generation_prompt=True, tokenize=True, **options)
        return [*encoded["input_ids"], *self._closing]

    def conversation(self, turns: Sequence[Turn], *, solve: bool) -> list[int]:
        """Encode a conversation up to the point where the model's turn begins. Its length is not checked.

        Args:
            turns: (role, text) of each message; the roles are system, user and assistant.
            solve: True to ask the last message of the user as a problem (`Prompts.solve`). Without a chat template
                every message of the user is asked so, and system messages are put before as they are.

        Raises:
            ModelError: The chat template refuses the conversation.
        """
        ask = self._prompts.render_solve
        last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=-1)
        if self._prompts.chat:
            return self.chat(
                [(role, ask(text) if solve and i == last else text) for i, (role, text) in enumerate(turns)]
            )
        parts = list[str]()
        for role, text in turns:
            if role == "assistant":
                parts.append(f"{self.answer_prefix}{text.strip()}")
            else:
                parts += [self._prompts.between if parts else "", ask(text) if role == "user" else text.strip()]
        return self.plain("".join(parts))

    def opening(self) -> list[int]:
        """Return the tokens of `Prompts.opens`, which follow a synthesis prompt."""
        return self._following(self._tails[0], self._prompts.opens) if self._prompts.opens else []

    def alone(self, text: str) -> list[int]:
        """Encode a text as if it stood alone, without start and end token. Special tokens in it count as text."""
        return self._split(text, add_special_tokens=False)

    # --- answers

    def answer(self, solution: str) -> list[int]:
        """Return the tokens of a solution after a solver prompt, without the end token."""
        return self._following(self._tails[0], f"{self.answer_prefix}{solution.strip()}")

    def written(self, example: str) -> list[int]:
        """Return the tokens of a practice example after a synthesis prompt, without the end token."""
        return self._following(self._tails[1], example)

    def _following(self, tail: str, text: str) -> list[int]:
        """Return the tokens of `text` as they are when it follows `tail`."""
        before = self.alone(tail)
        both = self.alone(tail + text)
        # Where the tokenizer merges across the boundary, the prompt's own tokens would change: then text alone.
        return both[len(before) :] if before and both[: len(before)] == before else self.alone(text)

    def _split(self, text: str, **options: Any) -> list[int]:
        """Encode a text whose special tokens count as text."""
        with _ENCODING:
            return list(self._tokenizer(text, split_special_tokens=True, **options)["input_ids"])

    # --- what the template does

    def _answer_form(self) -> tuple[int | None, str, str]:
        """Return the token that ends an answer, the end of a prompt, and the text that the template puts between.

        The end of a prompt is its text after the last special token. Raises ModelError for a template that leaves out
        the assistant's text.
        """
        turns = [("user", "Hello")]
        prompt = self._rendered(turns)
        whole = self._rendered([*turns, ("assistant", _MARK)], generation=False)
        before, mark, after = whole.rpartition(_MARK)
        if not mark:
            raise ModelError(
                f"the chat template of {self._name!r} leaves out what the assistant says; expected one that renders a "
                "conversation; correct chat_template in the model's folder, or set 'chat' to no in a prompts file"
            )
        gap = before.removeprefix(prompt) if before.startswith(prompt) else ""
        # A template that opens a thinking block although it should not: the prompt closes the block at once.
        if _THINK.search(prompt) and not self._prompts.thinking:
            closing = "</think>\n\n" if prompt.endswith("\n") else "\n</think>\n\n"
            self._closing, prompt = self.alone(closing), prompt + closing
        return self._first_special(after), self._after_specials(prompt)[-_ANCHOR_CHARS:], gap

    def _first_special(self, text: str) -> int | None:
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        special = self._special_ids()
        return next((int(i) for i in ids if i in special), None)

    def _after_specials(self, text: str) -> str:
        names = [self._tokenizer.convert_ids_to_tokens(i) for i in self._special_ids()]
        return text[max((text.rfind(name) + len(name) for name in names if name in text), default=0) :]

    def _special_ids(self) -> set[int]:
        added: dict[int, Any] = self._tokenizer.added_tokens_decoder
        return {*self._tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}

    def _end_id(self, of_template: int | None, of_model: Sequence[int]) -> int:
        found = of_template if of_template is not None else self._tokenizer.eos_token_id
        if found is None and not of_model:
            raise ModelError(
                f"the tokenizer of {self._name!r} has no end token; expected eos_token in its configuration, or "
                "eos_token_id in generation_config.json; add it there"
            )
        return int(of_model[0] if found is None else found)

    def _dated_template(self) -> str:
        """Return the chat template with the prompts' date in place of today's. Raises ModelError without a template."""
        try:
            template = str(self._tokenizer.get_chat_template())
        except ValueError as error:
            raise ModelError(
                f"the prompts are for a chat, and the tokenizer of {self._name!r} has no chat template; expected one; "
                "set 'chat' to no in the prompts file, or use a model that was trained to chat"
            ) from error
        day = date.fromisoformat(self._prompts.date)
        return _NOW.sub(lambda call: repr(day.strftime(call["form"])), template)

    def _takes_system(self) -> bool:
        """Return True where the template renders a system message; some raise an error, some leave it out."""
        if self._knows_system is None:
            messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": "Hello"}]
            try:
                self._knows_system = _MARK in self._apply(messages, add_generation_prompt=True, tokenize=False)
            except ModelError:
                self._knows_system = False
        return self._knows_system

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        system = self._prompts.system
        if turns and turns[0][0] == "system":
            (_, system), *turns = turns
        if system and self._takes_system():
            turns = [("system", system), *turns]
        elif system:
            (role, text), *others = turns
            turns = [(role, f"{system}\n\n{text}"), *others]
        return [{"role": role, "content": text} for role, text in turns]

    def _rendered(self, turns: Sequence[Turn], *, generation: bool = True) -> str:
        return self._apply(self._messages(turns), add_generation_prompt=generation, tokenize=False)

    def _apply(self, messages: list[dict[str, str]], **options: Any) -> Any:
        day = date.fromisoformat(self._prompts.date)
        try:
            with _ENCODING:
                return self._tokenizer.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    enable_thinking=self._prompts.thinking,
                    thinking=self._prompts.thinking,
                    date_string=day.strftime("%d %b %Y"),
                    **options,
                )
        except Exception as error:  # a template is a program of its author's, and may raise anything
            raise ModelError(
                f"the chat template of {self._name!r} cannot be used ({' '.join(str(error).split())[:160]}); correct "
                "chat_template in the model's folder, or set 'chat' to no in a prompts file"
            ) from error


def _can_sanitise(tokenizer: Any) -> bool:
    return hasattr(tokenizer, "_mark_chat_inputs")
