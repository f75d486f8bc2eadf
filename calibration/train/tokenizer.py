"""The one tokenizer of both models: byte-level BPE, trained on questions and answers from the training seeds."""

from collections.abc import Iterator
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from calibration.shapes.dataset import SEEDS
from calibration.shapes.facts import COPY_WORDS, LANDS, NUMBERS
from calibration.shapes.questions import KINDS, ask, plural
from calibration.shapes.scene import BACKGROUNDS, COLORS, COLUMNS, ROWS, SHAPES, SIZES, draw_scene

PAD = "<pad>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<end_of_utterance>"
IMAGE = "<image>"
FAKE_IMAGE = "<fake_token_around_image>"
GLOBAL_IMAGE = "<global-img>"
SPECIAL = (PAD, USER, ASSISTANT, END, IMAGE, FAKE_IMAGE, GLOBAL_IMAGE)

VOCABULARY = 768
CORPUS_SCENES = 3000
WORD_REPEATS = 200
CONTEXT_TOKENS = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<end_of_utterance>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer: nearly every word of the closed world becomes one token, the same each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[token for token in SPECIAL if token not in (PAD, END)],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one special token."""
    return int(tokenizer.get_vocab()[token])


def word_ids(tokenizer: PreTrainedTokenizerFast, words: tuple[str, ...]) -> list[int]:
    """The token of each word.

    Raises:
        ValueError: a word takes more than one token.
    """
    encoded = [tokenizer(word).input_ids for word in words]
    split = [word for word, ids in zip(words, encoded, strict=True) if len(ids) != 1]
    if split:
        raise ValueError(f"words of several tokens: {split}; raise VOCABULARY ({VOCABULARY})")
    return [ids[0] for ids in encoded]


def _corpus() -> Iterator[str]:
    words = [*NUMBERS, *COPY_WORDS, *COLORS, *SHAPES, *map(plural, SHAPES), *SIZES, *ROWS, *COLUMNS, *BACKGROUNDS]
    for land in LANDS:
        words += [land.name, land.capital, land.weather, land.crop, land.animal]
    for word in words:
        yield from [word] * WORD_REPEATS
    for seed in SEEDS["train"][:CORPUS_SCENES]:
        rng = Random(seed)
        scene = draw_scene(rng, fewest=2)
        for kind in KINDS:
            yield from ask(kind, scene, rng)
