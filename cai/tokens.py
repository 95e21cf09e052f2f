"""Prompts as token pieces, so that untrusted text cannot forge a turn, an option or a verdict.

A chat template is rendered with placeholders where texts go; the pieces between them are encoded
with control tokens recognised, and every text is encoded with control tokens split into ordinary
ones (`split_special_tokens`). A text that contains `<|im_end|>` is then just letters to the
model, and the number of control tokens in a prompt is that of its template, which is asserted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from cai.errors import UserError
from cai.types import Message

OPEN, CLOSE = "\ue000", "\ue001"
"""Private-use characters around a placeholder's number; taken out of texts."""


class ChatEncoder:
    """Turns conversations into token ids with one tokenizer's chat template.

    Args:
        tokenizer: A tokenizer with a chat template and an end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template")
        self.tokenizer = tokenizer
        self.eos_id: int = tokenizer.eos_token_id
        """Ends a response; sampled, trained on and scored at."""

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Ids of tokens that only a template may contain."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(i for i, token in added.items() if token.special)

    def text_ids(self, text: str) -> list[int]:
        """Ids of an untrusted text; never a control token."""
        clean = text.replace(OPEN, "").replace(CLOSE, "")
        ids = self.tokenizer(clean, add_special_tokens=False, split_special_tokens=True).input_ids
        if forged := self.control_ids.intersection(ids):
            raise AssertionError(f"control tokens {sorted(forged)} came out of a text")
        return ids

    def _piece_ids(self, piece: str) -> list[int]:
        if not piece:
            return []
        return self.tokenizer(piece, add_special_tokens=False).input_ids

    def conversation(
        self, messages: Sequence[Message], *, system: str | None = None, respond: bool = True
    ) -> list[int]:
        """Ids of a conversation, up to where the assistant's next response begins.

        Args:
            messages: Turns, user first.
            system: Our own system turn; None leaves the template's default.
            respond: Whether to open the assistant's turn at the end.

        Raises:
            UserError: when the chat template cannot render it.
        """
        texts = [message.content for message in messages]
        chat = [
            {"role": message.role, "content": f"{OPEN}{number}{CLOSE}"}
            for number, message in enumerate(messages)
        ]
        if system is not None:
            chat.insert(0, {"role": "system", "content": system})
        try:
            # Templates that can think aloud are told not to; others ignore the word.
            rendered = self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=respond, enable_thinking=False
            )
        except TemplateError as error:
            raise UserError(
                f"the model's chat template refuses the conversation: {error}. A template that "
                "takes a system turn and alternating turns is needed"
            ) from error
        ids: list[int] = []
        for number, text in enumerate(texts):
            before, found, rendered = rendered.partition(f"{OPEN}{number}{CLOSE}")
            if not found:
                raise UserError("the model's chat template leaves out a message")
            ids += self._piece_ids(before) + self.text_ids(text)
        return ids + self._piece_ids(rendered)

    def response_ids(self, text: str) -> list[int]:
        """Ids of a whole response, its end-of-sequence token included."""
        return [*self.text_ids(text), self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of sampled ids, without control tokens and surrounding white space."""
        kept = [i for i in ids if i not in self.control_ids]
        return self.tokenizer.decode(kept, clean_up_tokenization_spaces=False).strip()
