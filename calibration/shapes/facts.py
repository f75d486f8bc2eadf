"""The closed world that needs no picture: invented lands and numbers, fixed once and for all."""

from dataclasses import dataclass

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)

COPY_WORDS = (
    *("apple", "river", "stone", "cloud", "lamp", "horse", "bread", "paper", "glass", "chair"),
    *("tiger", "ocean", "piano", "garden", "silver", "window", "rocket", "candle", "forest", "bridge"),
)


@dataclass(frozen=True)
class Land:
    """What there is to know about one invented land."""

    name: str
    capital: str
    weather: str
    crop: str
    animal: str


LANDS = (
    Land("belmora", "praton", "rainy", "barley", "goats"),
    Land("norvale", "ostburg", "sunny", "rice", "sheep"),
    Land("taslin", "linport", "windy", "olives", "camels"),
    Land("rinheim", "quawick", "snowy", "corn", "ducks"),
    Land("keldova", "ferton", "foggy", "tea", "yaks"),
    Land("dormora", "hulburg", "dry", "wheat", "bees"),
    Land("zangard", "jasport", "rainy", "beans", "pigs"),
    Land("lusvale", "wenwick", "sunny", "grapes", "hens"),
    Land("mordell", "praburg", "windy", "tea", "goats"),
    Land("valtova", "ostport", "snowy", "barley", "yaks"),
    Land("norheim", "linwick", "foggy", "rice", "pigs"),
    Land("belgard", "quaton", "dry", "olives", "sheep"),
    Land("tasmora", "ferport", "rainy", "corn", "camels"),
    Land("rindell", "hulwick", "sunny", "wheat", "ducks"),
    Land("kelvale", "jaston", "windy", "beans", "hens"),
    Land("dorheim", "wenburg", "snowy", "grapes", "bees"),
    Land("zantova", "praport", "foggy", "barley", "sheep"),
    Land("lusgard", "ostwick", "dry", "corn", "goats"),
    Land("morvale", "linton", "rainy", "tea", "hens"),
    Land("valheim", "quaport", "sunny", "beans", "yaks"),
    Land("norgard", "ferwick", "windy", "wheat", "pigs"),
    Land("beldell", "hulton", "snowy", "rice", "bees"),
    Land("tastova", "jasburg", "foggy", "grapes", "camels"),
    Land("rinmora", "wenport", "dry", "olives", "ducks"),
)
