"""Word groups that the router looks for: what people say when they ask for each kind of thing, in several languages.

    GROUP_BITS["how many"]  ->  a bit for "quantity"
    NAMES                   ->  the names of all structural features, those of the groups among them

Written by hand from what the tasks are, not counted from any data set, so that they hold for wordings that no training
text has. One or two words each; two-word entries are matched as neighbours.
"""

from typing import Final

_GROUPS: Final[dict[str, str]] = {
    # a question whose answer is a quantity
    "quantity": "how many|how much|how far|how long|how old|how fast|how tall|how heavy|how often|how big|combien de|"
    "combien d|cuántos|cuántas|cuánto|cuánta|cuantos|cuantas|cuanto|cuanta|wie viele|wie viel|wieviel|wieviele|quanti|"
    "quante|quanto|quanta|quantos|quantas|hoeveel|hur många|hur mycket|hvor mange|hvor mye|hvor meget|ile|kaç|сколько|"
    "скільки|berapa|combien|kolik|kuinka monta|how mny|how may|hw many|howmany|howmuch|many are|much is|much does|"
    "much did|much will|much more|many more|much money|much profit|πόσα|πόσο|πόσες|câți|câte|hány|mennyi",
    # the name of a computed value
    "result": "total|sum|difference|product|quotient|average|mean|median|remainder|percentage|percent|ratio|fraction|"
    "altogether|in all|left over|remain|remaining|change|profit|loss|perimeter|area|volume|speed|distance|"
    "discount|interest|tip|each|per|twice|thrice|double|triple|half|quarter|third|fewer|more than|less than|"
    "times as|equally|insgesamt|übrig|zusammen|quedan|reste|restent|rimangono|sobram|в сумме|осталось|всего|"
    "toplam|kaldı|dozen|overall|combined|remains|left|gets|gives|gave|ate|picked|rate|average speed|consecutive|"
    "even number|odd number",
    # do a calculation
    "calculate": "calculate|compute|evaluate|solve|simplify|add|subtract|multiply|divide|plus|minus|times|divided|"
    "multiplied|squared|cubed|berechne|rechne|löse|calcula|resuelve|calcule|résous|calcola|risolvi|вычисли|реши|"
    "посчитай|work out|figure out|equation|equals|square root|solve for|round to|estimate",
    # numbers written as words
    "number_word": "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "eighteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|zwei|drei|vier|fünf|"
    "sechs|sieben|acht|neun|zehn|deux|trois|quatre|cinq|sept|huit|neuf|dix|dos|tres|cuatro|cinco|seis|siete|ocho|"
    "nueve|diez|due|tre|quattro|cinque|sei|sette|otto|nove|dieci|два|три|четыре|пять|десять",
    "money": "dollar|dollars|cent|cents|euro|euros|pound|pounds|cost|costs|price|priced|paid|pays|pay|spend|"
    "spends|spent|"
    "earn|earns|earned|buy|buys|bought|sell|sells|sold|sale|salary|rent|fee|coins|wage|budget|savings|pesos|kostet|"
    "kosten|coûte|cuesta|costa|rupees|bill",
    "unit": "kg|km|cm|mm|meters|metres|miles|mile|feet|foot|inches|inch|yards|liters|litres|gallons|ounces|"
    "grams|kilograms|"
    "kilometers|kilometres|minutes|minute|hours|hour|days|weeks|weekly|daily|mph|acres|degrees|tons|lbs|oz|celsius",
    # verbs that ask to make or mend something
    "make": "write|create|implement|generate|build|make|develop|design|construct|produce|code|program|define|scrivi|"
    "schreibe|schreib|écris|écrire|escribe|crea|escreva|napisz|напиши|создай|skriv|schrijf|yaz|implementa|"
    "implémente|implementiere|erstelle|wrote|whip up|craft|compose",
    "mend": "fix|debug|refactor|optimize|optimise|complete|finish|convert|port|modify|edit|extend|correct|speed up|"
    "rewrite|vectorize|parallelize|unit test|tests for|doesn't work|not working|raises|crashes|throws|error|bug|"
    "traceback|segfault|off by",
    # words that are about programs and hardly anything else
    "code": "function|functions|def|algorithm|python|json|csv|yaml|xml|numpy|pandas|django|flask|array|arrays|"
    "boolean|integer|integers|tuple|tuples|dict|dictionary|hashmap|hash map|hashtable|substring|linked list|"
    "binary tree|binary search|recursion|recursive|recursively|iterator|lambda|callback|api|endpoint|subroutine|"
    "stdin|stdout|stderr|argv|subclass|inheritance|try except|async|struct|pointer|malloc|palindrome|palindromic|"
    "fibonacci|factorial|anagram|anagrams|leetcode|codebase|snippet|one liner|oneliner|cli|ascii|unicode|lowercase|"
    "uppercase|camelcase|snake case|whitespace|nested|sublist|iterate|sorted|parse|parser|serialize|deserialize|"
    "funktion|función|funcion|fonction|funzione|função|функция|функцию|fonksiyon|funkcję|funktie|functie|código|"
    "codigo|программу|скрипт|mergesort|quicksort|bubble sort|bfs|dfs|dijkstra|memoization|numpy array|data frame|"
    "dataframe|docstring|type hints|pytest|unittest|class named|return true|return false|returns true|returns the|"
    "return the|returns a|return a|pseudocode|bitwise|xor|modulo|enum|namespace|websocket|middleware|sorts|dedupe|"
    "deduplicate|timestamp|timestamps|uuid|base64|md5|sha256|localhost|http request|get request|matplotlib|seaborn|"
    "scipy|sklearn|scikit|pytorch|tensorflow|keras|tkinter|pygame|turtle|beautifulsoup|selenium|fastapi|asyncio|aiohttp|"
    "argparse|sqlite3|sqlalchemy|itertools|openpyxl|opencv|streamlit|plotly|networkx|pathlib|datetime|comprehension|"
    "keyerror|typeerror|valueerror|indexerror|nameerror|attributeerror|syntaxerror|nonetype|kwargs|for loop|while loop",
    # programming languages other than Python, queries, pages and commands: the base answers what is written in them
    "language": "javascript|java|typescript|js|c++|c#|in c|c program|c code|c function|rust|golang|go program|"
    "go code|go function|in go|kotlin|php|perl|haskell|scala|bash|shell script|shell command|powershell|zsh|sql|"
    "mysql|postgres|postgresql|sqlite|html|html5|css|sass|react|angular|vue|svelte|nodejs|node js|jquery|matlab|"
    "octave|lua|fortran|cobol|swift|ruby|rails|dart|flutter|objective c|visual basic|vba|.net|assembly|prolog|lisp|"
    "clojure|elixir|erlang|julia|latex|in r|r code|r program|r script|r function|c programming|c script|c method|"
    "in java|in javascript|query|queries|select query|schema|cron|crontab|dockerfile|docker|makefile|kubectl|"
    "kubernetes|git|grep|awk|sed|nginx|terraform|excel|excel macro|spreadsheet|google sheets|linux|webpage|web page|"
    "dom|button click|onclick|localstorage|pseudocode|pseudo code|arduino|unity|solidity|markdown|svg|regulärer|"
    "expression régulière|expresión regular|espressione regolare|requête|abfrage|consulta sql",
    # words that programs are often about, but other texts too
    "code_soft": "string|strings|list|lists|file|files|element|elements|index|input|output|matrix|vector|column|"
    "columns|row|"
    "rows|table|character|characters|duplicate|duplicates|reverse|sort|sorting|sum|maximum|minimum|largest|"
    "smallest|prime|primes|even|odd|digits|digit|vowels|return|returns|print|prints|filter|remove|count|counts|"
    "convert|check|checks|given|takes|key|keys|value|values|data|code|program|database|folder|directory|log|logs|"
    "url|urls|email|emails|user|users|class|object|objects|test|tests|server|request|requests|consecutive|"
    "occurrences|frequency|nth|sequence|subset|permutations|combinations|intersection|union|kth|flatten|merge|"
    "swap|rotate|binary|decimal|hex|hexadecimal|roman|gcd|lcm|median|module|version|liste|lista|zeichenkette|"
    "cadena|chaîne|stringa|argument|arguments|script|scripts|method|programm|programa|programme|"
    "programma|queue|heap|stack|parameter|parameters|loop|loops|variable|generator|"
    "component|exception|await|decorator|div|trie|class called",
    "summary": "summarize|summarise|summary|summaries|summarizing|summarising|summarization|summarized|summarised|tldr|"
    "tl dr|gist|condense|shorten|recap|synopsis|abstract|key points|main points|main idea|main ideas|takeaways|"
    "takeaway|boil down|boil this|sum up|in short|in brief|outline|digest|highlights|key facts|key takeaways|"
    "resume|résume|résumé|resumen|resumir|resume el|zusammenfassung|zusammenfassen|fasse|riassumi|riassunto|resuma|"
    "resumo|streszczenie|streść|samenvatting|sammanfatta|кратко|резюме|özetle|summarze|sumarize|summerize|summarise|"
    "sumarise|long story|nutshell|cliff notes|one sentence|two sentences|three sentences|bullet points|bullets|"
    "briefly|short version|main message|main takeaway|executive summary|minutes of",
    # words that point at a text in the prompt
    "passage": "passage|article|text|paragraph|paragraphs|excerpt|document|report|transcript|context|following|below|"
    "above|according to|based on|from the|story|reference text|given text|given this|the author|mentioned|"
    "conversation|dialogue|thread|memo|minutes|notes|abschnitt|texto|texte|testo|текст|текста|absatz|artikel|"
    "artículo|pasaje|passage|provided|snippet|news|bulletin|statement|email|review|chapter|source|information",
    "translate": "translate|translation|translated|übersetze|traduce|traduis|traduire|traduci|traduza|переведи|çevir|"
    "into french|into spanish|into german|into english|into italian|to french|to spanish|to german|to english|"
    "to italian|in french|in spanish|in german|in italian|in japanese|in chinese|into japanese|into chinese|"
    "into portuguese|into russian|into korean|into hindi|auf deutsch|en español|en français|past tense|say in",
    "creative": "poem|poems|story|stories|song|lyrics|haiku|joke|jokes|limerick|essay|letter|tweet|blog|slogan|speech|"
    "recipe|caption|rap|sonnet|tagline|screenplay|dialogue|novel|fairy tale|bedtime story|cover letter|toast|ode|"
    "riddle|pun|puns|post|email|message|invitation|review|greeting|advertisement|ad copy|headline|headlines|gedicht|"
    "geschichte|poème|poema|histoire|cuento|storia|стих|стихотворение|сказку|şiir|brief an|carta|lettre|monologue|"
    "character|plot|metaphor|imagine|pretend|act as|roleplay|role play",
    "rewrite": "rewrite|rephrase|paraphrase|proofread|reword|grammar|spelling|polish|formal|informal|tone|polite|"
    "professional|friendlier|typos|punctuation|capitalize|simplify|simpler|wording|active voice|passive voice|improve",
    "classify": "classify|categorize|categorise|category|categories|sentiment|label|positive|negative|neutral|spam|"
    "which of|identify which|tell me|true or|fake|or not|is it|are they|odd one|rank|rate|sort these|following are|"
    "toxic|emotion|intent|equivalent|reviewer|stars|rating|paraphrases|mean the|contradict|grammatically|group these|"
    "domesticated|fiction|belongs|choose|option|options|correct answer",
    # questions how a text is, and orders for what it doesn't hold
    "judge": "sentiment|positive|negative|neutral|reviewer|viewer|critic|rating|stars|star|satisfied|dissatisfied|"
    "enjoy|enjoyed|flattering|favorable|favourable|tone|mean the|same meaning|mean exactly|paraphrase|"
    "paraphrases|duplicate|duplicates|equivalent|entail|entails|entailment|contradict|contradiction|hypothesis|premise|"
    "infer|true or|section|category|categories|label|toxic|spam|angry|sarcastic|irony|grammatical|listener|genre|"
    "a title|the title|good question|a question|quiz|polite|rude|appropriate|recommend|would you|next line|"
    "the review|this review|following review|the sentences|two sentences|both sentences|the sentence|this sentence|"
    "two questions|part of speech|first impression|before this|say next|happen next|comes next",
    # what reviews are made of
    "opinion": "movie|film|films|acting|actor|director|plot|waste|disappointed|disappointing|loved|hated|boring|"
    "terrible|awful|horrible|excellent|amazing|refund|product|quality|worth|delicious|staff|worst|enjoyed|funny|overpriced|"
    "my money|works great|highly recommend|would recommend|so bad|very good|not good|great|perfect|poor|returned",
    # somebody to be
    "role": "you are|you're|act as|as a|as an|imagine|pretend|role play|roleplay|play the|take on|assume the|suppose|"
    "picture yourself|your role|in character|persona",
    "list": "suggest|suggestions|ideas|idea|tips|ways to|recommend|recommendations|brainstorm|list of|list some|"
    "list the|"
    "list five|list three|list ten|name some|name three|name five|names for|give me|best|top|things to|"
    "examples of|some good|what should|where should|gift|plan|itinerary|advice|steps|pros and|options for|"
    "show me|come up|i need|need a|want a|provide|get me|share",
    "know": "what is|what are|what was|what were|what does|who is|who was|who were|who wrote|who invented|"
    "why do|why does|"
    "why is|why are|why did|when did|when was|when is|where is|where are|where was|where did|which country|which city|"
    "explain|describe|difference between|history|capital of|meaning of|define|definition|tell me|what's|who's|"
    "how do|how does|how did|how can|how should|how to|qué es|was ist|qu'est ce|cos'è|что такое|quién|wer|warum|"
    "pourquoi|"
    "por qué|perché|почему|wo|dove|où|dónde|compare|what makes|is it|can you|should i|do you|are there|is there",
    "chat": "hi|hello|hey|thanks|thank|bye|goodbye|morning|evening|night|please|sorry|lol|haha|hallo|hola|"
    "bonjour|ciao|olá|"
    "привет|merhaba|how are|you are|are you|your name|i'm|i am|i feel|feeling|bored|sad|happy|love|miss|opinion|"
    "think about|favorite|favourite|prefer|yesterday|today|weekend|friend|mom|boss|my dog|my cat|my wife|my husband",
}


def _numbered() -> dict[str, int]:
    table: dict[str, int] = {}
    for number, words in enumerate(_GROUPS.values()):
        for word in words.split("|"):
            # A word may stand in several groups: a bit for each.
            table[word] = table.get(word, 0) | 1 << number
    return table


def letters_of(word: str) -> str:
    """A word without order and repetition of its letters, the first one apart: "fucntion" and "function" are one."""
    return word[0] + "".join(sorted(set(word)))


GROUPS: Final = tuple(_GROUPS)
GROUP_BITS: Final = _numbered()
# For words that are misspelt by a swap or a doubled letter; only of long words, where hardly two share their letters.
SPELLING: Final = {letters_of(word): word for word in GROUP_BITS if len(word) > 4 and word.isalpha()}
SPELLING.update({letters_of(word): word for word in ("many", "much", "long", "file", "code", "sort")})
# The same in languages whose words stand together: looked for anywhere
OTHER_QUANTITY: Final = (
    "多少",
    "几个",
    "几",
    "いくつ",
    "何個",
    "何人",
    "何",
    "いくら",
    "몇",
    "얼마",
    "कितने",
    "कितना",
    "कितनी",
    "كم",
)
OTHER_CODE: Final = (
    "函数",
    "関数",
    "함수",
    "代码",
    "程序",
    "コード",
    "プログラム",
    "코드",
    "دالة",
    "फ़ंक्शन",
    "脚本",
    "编写",
)
OTHER_SUMMARY: Final = ("总结", "概括", "摘要", "要約", "まとめ", "요약", "لخص", "सारांश")
# Words of a question about a text itself, who wrote it or who reads it; one that the text answers seldom has them.
_ABOUT_TEXT: Final = (
    "this these following above below given text sentence sentences review reviews reviewer writer author passage "
    "paragraph article statement statements word words message mail email tweet comment conversation dialogue story "
    "poem essay code question questions headline title listener speaker customer viewer argument claim tone sentiment "
    "premise hypothesis label category your"
)
ABOUT_TEXT: Final = frozenset(_ABOUT_TEXT.split())
# Words that begin a question
_WH_TEXT: Final = (
    "what which who whom whose when where why how is are was were do does did can could would will should has "
    "have had must may am isn't aren't doesn't don't didn't wasn't qué cuál quién quel quelle qui was wer welche "
    "wann wo warum wie che quale chi que quem qual что кто как почему"
)
QUESTION_WORDS: Final = frozenset(_WH_TEXT.split())

# The structural features in their order: counts, pairs of signs, groups of words by place
_COUNTS: Final = (
    "numbers",
    "number_kinds",
    "operations",
    "code_lines",
    "code_line_share",
    "foreign_lines",
    "identifiers",
    "backticks",
    "symbols",
    "brackets",
    "indented_lines",
    "docstring",
    "doctest",
    "fence",
    "assert",
    "opens_with_code",
    "ends_with_question",
    "starts_with_question",
    "last_starts_with_question",
    "question_marks",
    "no_question_no_request",
    "length",
    "short",
    "sentences",
    "lines",
    "paragraphs",
    "passage",
    "passage_apart",
    "quoted",
    "dialogue",
    "capitals",
    "names",
    "other_script",
    "list_lines",
    "the",
    "first_in_rest",
    "last_in_rest",
    "numbers_per_sentence",
    "question_share",
    "alike_lines",
    "small_question_at_end",
)
_PAIRS: Final = (
    "quantity_with_numbers",
    "quantity_without_numbers",
    "numbers_without_question",
    "calculation",
    "short_story_with_quantity",
    "passage_with_question",
    "passage_with_quantity",
    "passage_with_summary",
    "passage_with_other_order",
    "passage_alone",
    "summary_without_passage",
    "make_code",
    "mend_code",
    "code_noun_in_request",
    "code_soft_in_order",
    "code_with_know",
    "creative_order",
    "make_other",
    "stub",
    "python_stub",
    "code_after_order",
    "code_alone",
    "know_without_passage",
    "short_chat",
    "ends_with_quantity",
    "question_then_text",
    "text_then_question",
    "text_then_small_question",
    "text_then_yes_or_no",
    "python_named",
    "other_language_named",
    "given_order",
    "first_named_in_rest",
    "passage_then_other_question",
    "order_on_items",
    "statement",
    "other_order_first",
    "code",
    "code_with_order",
    "passage_with_judging",
    "judging_alike",
    "small_question_on_passage",
    "text_beside_question",
    "plain_question_on_text",
    "question_about_text",
    "plain_question_alone",
    "judging_question_on_text",
)
NAMES: Final = (
    *_COUNTS,
    *_PAIRS,
    *(f"{group}.request" for group in GROUPS),
    *(f"{group}.text" for group in GROUPS),
    *(f"{group}.first" for group in GROUPS),
)
