"""The tables of sampling.py: rows of walks, which of them nothing beats for its cost, and how they compare."""

from perturbdiff_jax.evaluation.metrics import LOWER_IS_BETTER

METRICS = ("energy", "r2", "pearson_delta", "discrimination_score_l1")


def place(row: dict) -> tuple[str, str, float]:
    """What makes a row: run, walk, guidance."""
    return row["run"], row["walk"], row["guidance"]


def fronts(rows: list[dict]) -> list[dict]:
    """The rows with the metrics on whose Pareto front, among those of the same run, each is."""
    for row in rows:
        mine = [other for other in rows if other["run"] == row["run"]]
        row["front"] = [metric for metric in METRICS if on_front(row, mine, metric)]
    return rows


def on_front(row: dict, rows: list[dict], metric: str) -> bool:
    """Whether no other row has as good a mean for fewer evaluations, or a better one for as many."""
    sign = 1 if metric in LOWER_IS_BETTER else -1

    def beats(other: dict) -> bool:
        cost, value = other["evaluations"], sign * other[metric]["mean"]
        mine, own = row["evaluations"], sign * row[metric]["mean"]
        return (cost < mine and value <= own) or (cost == mine and value < own)

    return not any(beats(other) for other in rows)


def judged(row: dict, metric: str) -> str:
    """Whether a walk is better, worse or the same as the released one: does the interval of differences hold 0?

    A difference of less than a hundredth of the metric's own interval is the same, however surely it is there.
    """
    low, high, mean = (row[f"{metric} against released"][part] for part in ("low", "high", "mean"))
    width = row[metric]["high"] - row[metric]["low"]
    if not low <= high or low <= 0 <= high or abs(mean) < 0.01 * width:
        return "same"
    return "better" if (high < 0) == (metric in LOWER_IS_BETTER) else "worse"


def table(rows: list[dict]) -> None:
    """Prints the rows of one run."""
    print(f"\n{rows[0]['run']}\n")
    print(
        "| walk | w | evaluations | s / 1,000 cells | "
        + " | ".join(METRICS)
        + " | against the released walk |"
    )
    print("|---" * (5 + len(METRICS)) + "|")
    for row in rows:
        values = []
        for metric in METRICS:
            mean, low, high = (row[metric][part] for part in ("mean", "low", "high"))
            star = "*" if metric in row["front"] else ""
            values.append(f"{mean:.3f}{star} [{low:.3f}, {high:.3f}]")
        apart = {metric: judged(row, metric) for metric in METRICS}
        said = ", ".join(f"{metric} {word}" for metric, word in apart.items() if word != "same") or "same"
        cost = f"{row['guidance']:g} | {row['evaluations']} | {row['seconds']:.2f}"
        print(f"| {row['walk']} | {cost} | {' | '.join(values)} | {said} |")
    print("\n* nothing as good for fewer evaluations")
