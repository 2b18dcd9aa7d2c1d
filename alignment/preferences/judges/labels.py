"""The judge that reads its verdict from the logits of answer tokens, so that even a 135M model can give one.

All its questions begin alike: template, instruction, examples. That beginning is run through the model once, its keys
and values are kept, and every later batch is a tree of the distinct continuations behind it
(:mod:`alignment.models.shared_prefix`): a pair's question is one path, which both orders branch off from.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from alignment.chat import render_prompt
from alignment.faults import StageError
from alignment.models.shared_prefix import NODES, NODES_ELSEWHERE, PrefixTree, packs, shareable
from alignment.preferences.judges.injection import gives_orders
from alignment.preferences.judges.protocol import Judgement, Tally, bounded
from alignment.preferences.judges.settings import LabelProbabilitiesJudge
from alignment.preferences.judges.templates import conversation
from alignment.records import Comparison, Message, Prompt

LABELS = ("A", "B")
GRADES = ("1", "2", "3", "4", "5")
CUT = " […]"


class LabelJudge:
    """See :class:`~alignment.preferences.judges.settings.LabelProbabilitiesJudge`."""

    def __init__(self, settings: LabelProbabilitiesJudge, model: Any, tokenizer: Any, name: str) -> None:
        self.settings, self.tokenizer, self.name = settings, tokenizer, name
        self.tally = Tally()
        labels = GRADES if settings.form == "score" else LABELS
        self.reader = LabelReader(model, tokenizer, labels, self._lead(), self._beginning())

    async def judge(self, comparisons: Sequence[Comparison], /) -> list[Judgement]:
        size = self.settings.batch_size
        return [
            judgement
            for start in range(0, len(comparisons), size)
            for judgement in self._judge(comparisons[start : start + size])
        ]

    def _judge(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        shown = [one for one in comparisons if not any(gives_orders(response.text) for response in one.responses)]
        read = self._scored(shown) if self.settings.form == "score" else self._compared(shown)
        found = {one.id: orders for one, orders in zip(shown, read, strict=True)}
        return [
            Judgement(comparison_id=one.id, left_first=found[one.id][0], left_last=found[one.id][1])
            if one.id in found
            else Judgement(comparison_id=one.id, note="suspect")
            for one in comparisons
        ]

    def _compared(self, comparisons: Sequence[Comparison]) -> list[tuple[float | None, float | None]]:
        rows = []
        for comparison in comparisons:
            left, right = (response.text for response in comparison.responses)
            rows += [self._rows(comparison.prompt, (left, right)), self._rows(comparison.prompt, (right, left))]
        odds = [self._odds(logits, mass) for logits, mass in self._read(rows)]
        return [(odds[i], None if (last := odds[i + 1]) is None else -last) for i in range(0, len(odds), 2)]

    def _scored(self, comparisons: Sequence[Comparison]) -> list[tuple[float | None, float | None]]:
        """Each answer by itself; the lead in grades, in units in which one grade is e to one."""
        wanted = {
            (comparison.prompt.id, response.text): comparison.prompt
            for comparison in comparisons
            for response in comparison.responses
        }
        rows = [self._rows(prompt, (text,)) for (_id, text), prompt in wanted.items()]
        grades = dict(zip(wanted, (self._grade(*read) for read in self._read(rows)), strict=True))
        leads: list[float | None] = []
        for comparison in comparisons:
            left, right = (grades[comparison.prompt.id, response.text] for response in comparison.responses)
            leads.append(None if left is None or right is None else bounded(left - right))
        return [(lead, lead) for lead in leads]

    async def score(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
        """Each answer's score in [0, 1] by itself, of form ``score``; None where none could be read."""
        shown = [place for place, text in enumerate(texts) if not gives_orders(text)]
        read = self._read([self._rows(prompts[place], (texts[place],)) for place in shown])
        scores: list[float | None] = [None] * len(texts)
        for place, one in zip(shown, read, strict=True):
            grade = self._grade(*one)
            scores[place] = None if grade is None else (grade - 1) / (len(GRADES) - 1)
        return scores

    def _read(self, rows: Sequence[list[int]]) -> list[tuple[list[float], float]]:
        self.tally.asked += len(rows)
        self.tally.prompt_tokens += sum(map(len, rows))
        return self.reader.read(rows)

    def _odds(self, logits: list[float], mass: float) -> float | None:
        return None if mass < self.settings.min_label_mass else bounded(logits[0] - logits[1])

    def _grade(self, logits: list[float], mass: float) -> float | None:
        if mass < self.settings.min_label_mass:
            return None
        shares = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
        return float(sum(grade * share for grade, share in enumerate(shares, start=1)))

    def _rows(self, prompt: Prompt, texts: Sequence[str]) -> list[int]:
        turns = [*self._examples(), Message(role="user", content=self._ask(conversation(prompt.messages), texts))]
        return render_prompt(self.tokenizer, turns) + self._lead()

    def _beginning(self) -> list[int]:
        """The tokens that every question begins with: template, examples, instruction."""
        asked = [Prompt(id=text, messages=(Message(role="user", content=text),)) for text in ("x", "7")]
        one, other = (self._rows(prompt, ("x", "x")) for prompt in asked)
        return one[: _common(one, other)]

    def _lead(self) -> list[int]:
        """How the judge's answer begins, up to its label."""
        text = "Grade:" if self.settings.form == "score" else "The better answer is"
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _ask(self, question: str, texts: Sequence[str]) -> str:
        shown = [self._shortened(text) for text in texts]
        if self.settings.form == "score":
            return (
                f"{self.settings.question}\nGrade the answer from 1 (bad) to 5 (excellent).\n\n"
                f"Question: {question}\n\nAnswer: {shown[0]}"
            )
        return f"{self.settings.question}\n\nQuestion: {question}\n\nAnswer A: {shown[0]}\n\nAnswer B: {shown[1]}"

    def _shortened(self, text: str) -> str:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        longest = self.settings.max_answer_tokens
        return text.strip() if len(ids) <= longest else str(self.tokenizer.decode(ids[:longest])).strip() + CUT

    def _examples(self) -> list[Message]:
        turns = []
        for one in self.settings.score_examples:
            grade = round(1 + (one.score - 1) * (len(GRADES) - 1) / 9)
            turns.append(Message(role="user", content=self._ask(one.prompt, (one.answer,))))
            turns.append(Message(role="assistant", content=f"Grade: {grade}"))
        for example in self.settings.examples:
            turns.append(Message(role="user", content=self._ask(example.prompt, (example.a, example.b))))
            turns.append(Message(role="assistant", content=f"The better answer is {example.verdict}"))
        return turns


class LabelReader:
    """Logits of a few labels after token sequences, and the share of the model's probability that is on them."""

    def __init__(
        self, model: Any, tokenizer: Any, labels: Sequence[str], lead: Sequence[int], beginning: Sequence[int] = ()
    ) -> None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.trunk, self.head = base.base_model, base.get_output_embeddings()
        self.device, self.pad = model.device, tokenizer.pad_token_id
        self.labels = [self._first_token(tokenizer, lead, label) for label in labels]
        if len(set(self.labels)) < len(labels):
            raise StageError(f"the model's tokenizer begins the labels {', '.join(labels)} with the same token")
        self.shares = shareable(self.trunk) and self.trunk.config._attn_implementation == "sdpa"
        self.begun: tuple[list[int], Any] = (list(beginning), None)

    @staticmethod
    def _first_token(tokenizer: Any, lead: Sequence[int], label: str) -> int:
        """The token that a label begins with where it follows the lead."""
        text = tokenizer.decode(lead)
        whole = tokenizer(f"{text} {label}", add_special_tokens=False)["input_ids"]
        rest: list[int] = whole[_common(whole, lead) :]
        # A tokenizer may write the space as a token of its own, which all labels then share.
        space = tokenizer(" ", add_special_tokens=False)["input_ids"]
        return rest[len(space)] if rest[: len(space)] == space and len(rest) > len(space) else rest[0]

    @torch.inference_mode()
    def read(self, rows: Sequence[list[int]]) -> list[tuple[list[float], float]]:
        """(logits of the labels, their share of the probability) after each row of token ids, in the rows' order."""
        if not rows:
            return []
        hidden = self._shared(rows) if self.shares else self._padded(rows)
        logits = self.head(hidden).float()
        chosen = logits[:, self.labels]
        mass = (chosen.logsumexp(-1) - logits.logsumexp(-1)).exp()
        return [(one, float(share)) for one, share in zip(chosen.tolist(), mass.tolist(), strict=True)]

    def _shared(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """(rows, D): the hidden states of the rows' last tokens, each distinct prefix computed once."""
        beginning, cache = self._beginning(rows)
        rest = [row[len(beginning) :] for row in rows]
        last: list[torch.Tensor | None] = [None] * len(rows)
        for members in packs(rest, NODES.get(self.device.type, NODES_ELSEWHERE)):
            tree = PrefixTree()
            ends = [tree.add(rest[row])[-1] for row in members]
            before = torch.ones(len(tree.tokens), len(beginning), dtype=torch.bool)
            mask = torch.cat([before, tree.ancestor_mask()], dim=1).to(self.device)
            positions = [len(beginning) + depth for depth in tree.depths]
            output = self.trunk(
                input_ids=torch.tensor([tree.tokens], device=self.device),
                attention_mask=mask[None, None],
                position_ids=torch.tensor([positions], device=self.device),
                past_key_values=cache,
                use_cache=True,
            )
            cache.crop(-len(tree.tokens))  # a negative number: so many are taken off
            for row, end in zip(members, ends, strict=True):
                last[row] = output.last_hidden_state[0, end]
        return torch.stack([one for one in last if one is not None])

    def _beginning(self, rows: Sequence[list[int]]) -> tuple[list[int], Any]:
        """The tokens that all questions begin with, and their keys and values, computed once.

        A tokenizer may merge them with what follows: then fewer are shared, by these rows and those after them.
        """
        common = self.begun[0]
        for row in rows:
            common = common[: _common(common, row[:-1])]
        if self.begun[1] is None or len(common) < len(self.begun[0]):
            cache = DynamicCache(config=self.trunk.config)
            if common:
                ids = torch.tensor([common], device=self.device)
                self.trunk(input_ids=ids, past_key_values=cache, use_cache=True)
            self.begun = common, cache
        return self.begun

    def _padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.pad or 0] * (width - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(width, device=self.device) < lengths[:, None]
        hidden = self.trunk(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        states: torch.Tensor = hidden[torch.arange(len(rows), device=self.device), lengths - 1]
        return states


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))))
