"""TF-IDF and logistic regression on the same rows as train.py, a model per task; C is chosen on the validation rows.

python benchmarks/tfidf.py
python benchmarks/tfidf.py --data train.jsonl --val dev.jsonl --test test.jsonl --tasks sentiment
"""

import sys
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).parent.parent))
import mtbert
import train


def main():
    args = train.parse_args()
    tasks, rows = mtbert.read_data(args.data, args.val, args.test, args.tasks, True, args.text_column, args.seed)
    for task in (task for task in tasks if task.labels):
        labelled = {split: [row for row in part if task.name in row.labels] for split, part in rows.items()}
        x = {split: [row.text for row in part] for split, part in labelled.items()}
        y = {split: [row.labels[task.name] for row in part] for split, part in labelled.items()}
        models = []
        for c in (0.1, 0.3, 1, 3, 10, 30, 100):
            classifier = LogisticRegression(C=c, max_iter=5000)
            model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), classifier).fit(x["train"], y["train"])
            models.append((f1_score(y["validation"], model.predict(x["validation"]), average="macro"), c, model))
        score, c, model = max(models, key=lambda entry: entry[0])
        guess = model.predict(x["test"])
        print(f"{task.name}: C {c} (validation macro-F1 {score:.4f}), test accuracy {accuracy_score(y['test'], guess):.4f}", end="")
        print(f", macro-F1 {f1_score(y['test'], guess, average='macro'):.4f}")


if __name__ == "__main__":
    mtbert.run_script(main)
