"""Few-shot examples of the tasks in `tasks/`, where lm-eval's own choice would give the answer away."""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.samplers import ContextSampler


class OtherFacts(ContextSampler):
    """Facts about other subjects, in the paraphrase that is asked.

    lm-eval leaves out the row being asked, but its other paraphrases, whose answer is the same, are rows too.
    """

    def sample(
        self,
        n: int,
        eval_doc: dict[str, Any] | None = None,
        df: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Sequence[dict[str, Any]]:
        """Draw `n` rows of the pool (or of `df`) that fit `eval_doc`; all of them fit None."""
        pool = [
            row
            for row in (df or self.fewshot_docs())
            if eval_doc is None or (row["subject"] != eval_doc["subject"] and row["pattern"] == eval_doc["pattern"])
        ]
        return self.rnd.sample(pool, n)
