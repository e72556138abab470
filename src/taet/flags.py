"""What a flag is: a reason not to trust a number, with the condition that raises it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

SentenceValues: TypeAlias = Mapping[str, object]  # what the sentence of a raised flag names
Condition: TypeAlias = Callable[[Any], SentenceValues | None]
"""Returns None if the flag is not raised, else the values that its sentence and remedy name."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A reason not to trust a number, with the condition that raises it."""

    name: str
    about: str
    """What kind of thing its condition is given."""
    condition: Condition
    sentence: str
    """What was found and what it means; names values of the condition in braces."""
    remedy: str = ""
    """What to do about it."""
    masks_gradients: bool = False
    """Whether attacks that use only gradients may be far from the true accuracy."""

    def text(self, values: SentenceValues) -> str:
        """Return the sentence and the remedy with these values."""
        text = f"{self.sentence}; {self.remedy}" if self.remedy else self.sentence
        return f"{text.format(**values)}."


class FlagList(list[Flag]):
    """The flags that one module declares."""

    def flag(
        self,
        name: str,
        about: str,
        sentence: str,
        remedy: str = "",
        *,
        masks_gradients: bool = False,
    ) -> Callable[[Condition], Condition]:
        """Return a decorator that adds a flag with the decorated condition."""

        def add(condition: Condition) -> Condition:
            self.append(
                Flag(
                    name=name,
                    about=about,
                    condition=condition,
                    sentence=sentence,
                    remedy=remedy,
                    masks_gradients=masks_gradients,
                )
            )
            return condition

        return add

    def raised(self, about: str, subject: object) -> dict[str, str]:
        """Return the texts of the flags about one subject that their conditions raise, by name."""
        texts = {}
        for candidate in self:
            if candidate.about != about:
                continue
            values = candidate.condition(subject)
            if values is not None:
                texts[candidate.name] = candidate.text(values)
        return texts
