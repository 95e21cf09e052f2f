"""Word lists of the lint, all our own, each with the reason why a word is on it.

A list is closed on purpose: a word that is right in half of its uses does not belong here.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a text is made of, whatever it is about ----------------------------------------------------

FUNCTION = _words(
    """
    a an the this that these those such some any each every no none all both either neither
    i me my mine we us our you your yours he him his she her hers it its they them their theirs one
    who whom whose which what when where why how whether if unless until while because so than then
    and or but nor not never only also too very just even still yet again ever
    of in on at by for with without about against between into through during before after above
    below to from up down out off over under within beyond toward towards upon among per as like
    is are was were be been being am do does did doing done have has had having
    can could may might must shall should will would cannot can't won't don't doesn't didn't isn't
    aren't wasn't weren't there here more most less least fewer fewest much many few other another
    same own instead rather itself themselves themself himself herself yourself myself something
    anything nothing everything somebody anybody nobody someone anyone everyone
    """
)
"""Words that every English text has."""

FRAME = _words(
    """
    response respond answer reply assistant ai model user human person people reader conversation
    last preceding previous two better best worse choose pick prefer select
    critique revise revision rewrite request compare comparison principle rule
    check look read search examine find list decide consider identify explain describe
    discuss quote name say state point note show give offer keep make use put take get
    part place text wording sentence word thing way plainly plain clearly
    break missing present contain hold include add well good bad
    please
    """
)
"""Words that requests of every kind are made of; two forms that share only these share nothing.
They count in these forms and with an s: `find` is here, a `finding` is not."""

IRREGULAR = {
    "gave": "giv", "given": "giv", "told": "tell", "said": "sai", "says": "sai", "kept": "keep",
    "held": "hold", "made": "mak", "took": "tak", "taken": "tak", "wrote": "writ",
    "written": "writ", "hid": "hid", "hidden": "hid", "lying": "lie", "lies": "lie",
    "shown": "show", "left": "leav", "leave": "leav", "broke": "break", "broken": "break",
    "meant": "mean", "sold": "sell", "bought": "bui", "stole": "steal", "stolen": "steal",
    "children": "child", "women": "woman", "men": "man", "people": "person", "yes": "yes",
    "always": "alwai", "this": "this", "less": "less", "unless": "unless", "does": "do",
    "goes": "go", "use": "us", "uses": "us", "used": "us", "using": "us", "free": "free",
    "freer": "free",
}  # fmt: skip
"""Stems that cutting endings would get wrong."""

# Clauses and signs, for `cai.audit.polarity` ------------------------------------------------------

OPENS_CONDITION = _words(
    """
    when whenever if where wherever unless until before after while once for on in at to outside
    inside given with without as during
    """
)
"""First words of a sentence whose main clause comes later, at its subject."""

SUBJECTS = _words("response responses answer reply assistant story")

OPENS_ASIDE = _words(
    """
    but while unless except although though because whereas yet when if where until whenever before
    after even
    """
)
"""Words that begin a condition, a reason or a contrast inside a sentence."""

OPENS_QUESTION = _words("which what how compare consider please is does did")
"""First words of a sentence that asks and does not state."""

JOINS = _words("and or but nor then also")

OPENS_OBJECT = _words(
    """
    the a an what how who that it its them their any each every no to at from only all one when
    where which nothing anything not never whether some both
    """
)
"""Words that follow a verb rather than a noun that ends in s."""

ARTICLES = _words("the a an one its their")
PREPOSITIONS = _words("with in on at to for from by")

DENIES = _words("no not never without neither nor cannot less fewer least fewest")
"""None or less of what follows. `none`, `nothing` and `nobody` close a clause and deny nothing."""

DENYING_VERBS = _words(
    "avoid refrain withhold omit exclude drop prevent stop reject resist forbid free"
)
"""Verbs (and `free of`) whose object is not to be there. `refuse` and `decline` are left out: what
is refused in a principle against refusing is just what it wants."""

DENIES_IN_TWO = frozenset({("hold", "back"), ("leav", "out"), ("keep", "back")})
DENIES_BEFORE = {"instead": frozenset({"of"}), "rather": frozenset({"than"})}
INCREASES = _words("more most further greater greatest higher")

RESTRICTS = _words("only alone except beyond unless until limit limits")
"""What is allowed within bounds is neither asked for nor forbidden."""

# Wording --------------------------------------------------------------------------------------

VAGUE = _words(
    """
    appropriate appropriately inappropriate proper properly improper suitable unsuitable reasonable
    reasonably unreasonable acceptable unacceptable good bad nice great fine decent sensible quality
    high-quality positive negative harmful harmless ethical ethically unethical moral immoral
    helpful unhelpful responsible responsibly irresponsible problematic questionable adequate
    adequately sufficient optimal ideal wrong
    """
)
"""Verdicts: they say that something is good or bad and not what it looks like. Traits that a reader
can see in a text (polite, brief, honest) are none."""

EMPTY = _words(
    """
    content behavior behaviour manner standard value quality aspect matter very overly unduly really
    extremely possible always possibly remove improve generally often usually degree avoid ensure
    sure way action advice information activity conduct nature kind sort specific specifically
    """
)
"""Words that make a verdict no clearer: `avoids harmful content in any possible way`."""

IDLE = _words(
    """
    response respond answer reply assistant ai model user human person people reader two better best
    worse choose pick prefer select give offer make use keep contain hold include add please
    """
)
"""Words of a principle that say nothing about what a reader would find."""

ESCAPES = (
    "as appropriate", "where appropriate", "when appropriate", "if appropriate",
    "as necessary", "where necessary", "when necessary", "if necessary", "as needed",
    "when possible", "where possible", "if possible", "whenever possible", "wherever possible",
    "as far as possible", "where reasonable", "within reason", "to a reasonable extent",
    "to a reasonable degree", "to the extent possible", "as much as possible", "etc", "and so on",
    "and so forth", "and the like", "as applicable", "where applicable", "if applicable", "try to",
    "tries to", "attempts to", "ideally",
)  # fmt: skip
"""Phrases that leave it to the reader when or how far a principle holds."""

QUALITIES = _words(
    """
    helpful honest harmless polite respectful kind safe ethical moral accurate clear concise brief
    relevant truthful friendly thoughtful wise fair unbiased neutral objective professional
    empathetic caring sensitive inclusive creative engaging informative detailed complete consistent
    coherent peaceful legal lawful responsible warm patient humble transparent trustworthy amiable
    conscientious
    """
)
"""Traits of a response; each is a principle by itself."""

LOADED = (
    "obviously", "of course", "surely", "undoubtedly", "needless to say", "as everyone knows",
    "as we all know", "it goes without saying", "blatantly", "outrageous", "outrageously",
    "disgusting", "disgustingly", "evil", "horrible", "horribly", "horrific", "terrible",
    "terribly", "awful", "vile", "despicable", "shameful", "shamefully", "ridiculous", "stupid",
    "idiotic", "insane", "disgraceful", "repugnant", "repulsive", "so-called", "any decent person",
    "no decent person", "no sane person", "any sane person", "wicked", "nasty", "appalling",
    "abhorrent", "sickening", "unforgivable", "wonderful", "fantastic", "brilliant",
)  # fmt: skip
"""Words that pass the verdict before the reader has looked."""
