"""Teach a language model to answer questions, and ask it which of its answers it is sure of.

    python examples/instructions.py
    python examples/instructions.py --method blob

A small Llama, made from its configuration, first learns how questions about capitals are answered, each with cities
drawn at random. Bayesian adapters then learn the true capitals of two countries in three, as instructions: only answers
are learned. Asked about all countries, it should be sure of those it was taught. It prints what is learned of one
instruction, the answers with their uncertainty, the AUROC of each uncertainty for questions that were not taught, with
a 95% bootstrap interval, and how far the centre is from the same adapters read back by PEFT. Nothing is downloaded.
Half a minute on one core.
"""

import argparse
import tempfile

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import bayeslora

CAPITALS = dict(
    line.split(": ")
    for line in """Albania: Tirana; Algeria: Algiers; Angola: Luanda; Austria: Vienna; Belgium: Brussels; Bolivia:
Sucre; Bulgaria: Sofia; Canada: Ottawa; Chad: Ndjamena; Chile: Santiago; China: Beijing;
Croatia: Zagreb; Cuba: Havana; Denmark: Copenhagen; Ecuador: Quito; Egypt: Cairo; Estonia:
Tallinn; Ethiopia: Addis; Finland: Helsinki; France: Paris; Germany: Berlin; Ghana: Accra;
Greece: Athens; Hungary: Budapest; Iceland: Reykjavik; Indonesia: Jakarta; Iran: Tehran; Iraq:
Baghdad; Ireland: Dublin; Italy: Rome; Jamaica: Kingston; Japan: Tokyo; Jordan: Amman; Kenya:
Nairobi; Latvia: Riga; Lebanon: Beirut; Libya: Tripoli; Mali: Bamako; Malta: Valletta; Morocco:
Rabat; Nepal: Kathmandu; Niger: Niamey; Norway: Oslo; Peru: Lima; Poland: Warsaw; Portugal:
Lisbon; Romania: Bucharest; Russia: Moscow; Senegal: Dakar; Serbia: Belgrade; Spain: Madrid;
Sudan: Khartoum; Sweden: Stockholm; Syria: Damascus; Thailand: Bangkok; Tunisia: Tunis; Turkey:
Ankara; Uganda: Kampala; Vietnam: Hanoi; Zambia: Lusaka""".replace("\n", " ").split("; ")
)


def instruction(country: str, city: str) -> dict[str, str]:
    """A question and its answer, in Alpaca's columns."""
    return {"instruction": f"What is the capital of {country} ?", "output": city}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, and the marks of the default template."""
    known = ["<unk>", "<end>", "###", "User", "Assistant", ":", "?", "What", "is", "the", "capital", "of"]
    vocabulary = {word: index for index, word in enumerate([*known, *CAPITALS, *CAPITALS.values()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<end>", pad_token="<end>")


def interval(inside: np.ndarray, outside: np.ndarray) -> tuple[float, float]:
    """A 95% interval of the AUROC, by drawing both kinds of questions anew."""
    generator = np.random.default_rng(0)
    wins = (outside > inside[:, None]) + 0.5 * (outside == inside[:, None])  # of each pair: their mean is the AUROC
    draws = [wins[np.ix_(*(generator.integers(n, size=n) for n in wins.shape))].mean() for _ in range(500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Train, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="monteclora", choices=list(bayeslora.METHODS))
    parser.add_argument("--pretraining", type=float, default=10, help="passes over questions with random answers")
    parser.add_argument("--epochs", type=float, default=80, help="passes over the true answers")
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # on tensors this small, threads would wait for each other

    tokenizer = words()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = LlamaConfig(
        vocab_size=len(tokenizer), **sizes, max_position_embeddings=32, initializer_range=0.1, eos_token_id=1
    )
    generator = np.random.default_rng(0)
    cities = list(CAPITALS.values())
    guesses = [
        instruction(country, city)
        for _ in range(8)
        for country, city in zip(CAPITALS, generator.permutation(cities), strict=True)
    ]
    settings = {"tokenizer": tokenizer, "progress": False}
    network = LlamaForCausalLM(config)
    base = bayeslora.fit(
        network, guesses, "full", epochs=options.pretraining, learning_rate=3e-3, batch_size=32, **settings
    ).merge()

    countries = generator.permutation(list(CAPITALS)).tolist()
    taught = countries[:40]
    facts = [instruction(country, CAPITALS[country]) for country in taught]
    posterior = bayeslora.fit(
        base, facts, options.method, epochs=options.epochs, learning_rate=4e-3, batch_size=8, rank=16, **settings
    )
    learned = posterior.predict(facts[:1], num_draws=1)
    print(facts[0], "\nlearned:", tokenizer.convert_ids_to_tokens(learned.tokens.tolist()), "\n")

    asked = [[{"role": "user", "content": instruction(country, "")["instruction"]}] for country in countries]
    answers = posterior.answers(asked, num_draws=options.draws, samples=2, max_new_tokens=4)
    table = answers.to_pandas()
    table.insert(0, "country", countries)
    table.insert(
        2, "right", [text == CAPITALS[country] for text, country in zip(table["text"], countries, strict=True)]
    )
    table.insert(3, "taught", [country in taught for country in countries])
    print(table.groupby("taught").head(4).round(2).to_string(index=False), "\n")
    print(f"right: {table['right'][:40].mean():.2f} of those taught, {table['right'][40:].mean():.2f} of the others\n")

    rows = []
    for name in ("predictive_entropy", "mutual_information", "disagreement", "semantic_entropy"):
        inside, outside = table[name][:40].to_numpy(), table[name][40:].to_numpy()
        low, high = interval(inside, outside)
        rows.append({"uncertainty": name, "AUROC": bayeslora.metrics.auroc(inside, outside), "from": low, "to": high})
    print(pd.DataFrame(rows).round(3).to_string(index=False), "\n")

    with tempfile.TemporaryDirectory() as folder:
        posterior.export_peft(folder)
        try:
            from peft import PeftModel
        except ImportError:
            return
        ids = tokenizer.apply_chat_template(
            asked[0], chat_template=bayeslora.tasks.templates.TEMPLATE, return_tensors="pt"
        )
        with torch.no_grad():
            theirs = PeftModel.from_pretrained(base, folder)(ids["input_ids"]).logits
            own = posterior.merge()(ids["input_ids"]).logits
        print(f"read back by PEFT, logits differ by at most {float((own - theirs).abs().max()):.1e}")


if __name__ == "__main__":
    main()
