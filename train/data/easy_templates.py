"""The texts of `easy_problems`: names, things, containers and templates, all our own.

In a template a, b, c are given numbers, x the result of the first of two steps, y the answer, d a number that
doesn't matter. N and M are people, things and others plural nouns, box/boxes a container.
"""

from dataclasses import dataclass

NAMES = (
    "Mia", "Omar", "Lena", "Ravi", "Tara", "Jonas", "Nia", "Felix", "Aiko", "Bruno", "Clara", "Diego", "Elif", "Frank",
    "Greta", "Hugo", "Ines", "Jack", "Kofi", "Lucy", "Marco", "Nora", "Paul", "Rosa", "Sam", "Tom", "Uma", "Victor",
    "Wendy", "Yusuf", "Zoe", "Ben", "Anna", "Carl", "Dora", "Emma", "Ryan", "Julia", "Kevin", "Mary",
)  # fmt: skip
THINGS = (
    "apples", "oranges", "shells", "marbles", "stickers", "cards", "books", "pencils", "cookies", "candies", "coins",
    "stamps", "balloons", "flowers", "toy cars", "eggs", "muffins", "beads", "buttons", "crayons", "peaches", "stones",
    "photos", "bottles", "pens", "magazines", "games", "roses", "cupcakes", "erasers", "nuts", "bananas", "pears",
)  # fmt: skip
CONTAINERS = (
    ("box", "boxes"), ("bag", "bags"), ("basket", "baskets"), ("jar", "jars"), ("shelf", "shelves"),
    ("tray", "trays"), ("pack", "packs"), ("crate", "crates"), ("drawer", "drawers"), ("carton", "cartons"),
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A problem with holes: its arithmetic (a key of KINDS), question and worked answer without the final line."""

    kind: str
    question: str
    answer: str


def _templates() -> tuple[Template, ...]:
    rows = [block.strip().split("\n") for block in _TEXT.strip().split("\n\n")]
    return tuple(Template(kind.strip(), question.strip(), "\n".join(answer)) for kind, question, *answer in rows)


_TEXT = """
add
{N} has {a} {things}. {M} gives {N} {b} more. How many {things} does {N} have now?
{N} has {a} + {b} = {y} {things} now.

add
There are {a} {things} on the table and {b} {things} on the floor. How many {things} are there in all?
There are {a} + {b} = {y} {things} in all.

add
{N} picked {a} {things} and {M} picked {b} {things}. {M} also picked {d} {others}. How many {things} did they pick?
Together they picked {a} + {b} = {y} {things}.

add
{N} read {a} pages yesterday and {b} pages today. How many pages did {N} read in the two days?
{N} read {a} + {b} = {y} pages in the two days.

add
After {N} ate {a} {things} there were {b} {things} left. How many {things} were there at the start?
At the start there were {a} + {b} = {y} {things}.

add
{N} gave {a} {things} to {M} and now has {b} left. How many {things} did {N} have before?
Before, {N} had {a} + {b} = {y} {things}.

add
{M} has {a} {things}. {N} has {b} more {things} than {M}. How many {things} does {N} have?
{N} has {a} + {b} = {y} {things}.

add
A train had {a} people on board. At the next stop {b} more people got on. How many people are on the train now?
There are {a} + {b} = {y} people on the train now.

add
{N} spent {a} dollars on {things} and {b} dollars on {others}. How much did {N} spend in all?
{N} spent {a} + {b} = {y} dollars in all.

add
A shop sold {a} {things} in the morning and {b} {things} in the afternoon. How many {things} did it sell that day?
It sold {a} + {b} = {y} {things} that day.

sub
{N} had {a} {things} and gave {b} of them to {M}. How many {things} does {N} have left?
{N} has {a} - {b} = {y} {things} left.

sub
There were {a} {things} in a {box}. {N} took out {b}. How many {things} are still in the {box}?
There are {a} - {b} = {y} {things} still in the {box}.

sub
{N} has {a} {things} and {M} has {b} {things}. How many more {things} does {N} have than {M}?
{N} has {a} - {b} = {y} more {things} than {M}.

sub
{N} has {b} {things} and {M} has {a} {things}. How many fewer {things} does {N} have than {M}?
{N} has {a} - {b} = {y} fewer {things} than {M}.

sub
{N} had {b} {things}. After buying some more, {N} has {a} {things}. How many {things} did {N} buy?
{N} bought {a} - {b} = {y} {things}.

sub
{N} had {a} {things}. After giving some to {M}, {N} has {b} left. How many {things} did {N} give away?
{N} gave away {a} - {b} = {y} {things}.

sub
There are {a} {things} and {b} {others} in the kitchen. How many more {things} than {others} are there?
There are {a} - {b} = {y} more {things} than {others}.

sub
There are {a} {things} and {others} in a {box}. {b} of them are {others}. How many are {things}?
There are {a} - {b} = {y} {things}.

sub
{N} wants to collect {a} {things}. {N} already has {b} {things} and {d} {others}. How many more {things} does {N} need?
{N} needs {a} - {b} = {y} more {things}.

sub
A book has {a} pages. {N} has read {b} pages in {d} days. How many pages are left to read?
There are {a} - {b} = {y} pages left to read.

sub
{N} had {a} dollars and bought a game for {b} dollars. How much money does {N} have left?
{N} has {a} - {b} = {y} dollars left.

sub
{N} has {a} {things}. {N} has {b} more {things} than {M}. How many {things} does {M} have?
{M} has {a} - {b} = {y} {things}.

sub
A coat costs {a} dollars. With a discount it is {b} dollars cheaper. How much does the coat cost now?
The coat costs {a} - {b} = {y} dollars now.

sub
{N} jumped {a} inches. {M} jumped {b} inches less than {N}. How far did {M} jump?
{M} jumped {a} - {b} = {y} inches.

sub
The red rope is {a} feet long and the blue rope is {b} feet long. How much longer is the red rope?
The red rope is {a} - {b} = {y} feet longer.

sub
There were {a} birds on a tree. Some flew away and {b} are left. How many birds flew away?
{a} - {b} = {y} birds flew away.

mul
{N} has {a} {boxes} with {b} {things} in each {box}. How many {things} does {N} have in all?
{N} has {a} x {b} = {y} {things} in all.

mul
Each {box} holds {b} {things}. How many {things} do {a} {boxes} hold?
{a} {boxes} hold {a} x {b} = {y} {things}.

mul
{N} reads {b} pages every day. How many pages does {N} read in {a} days?
In {a} days {N} reads {a} x {b} = {y} pages.

mul
A ticket costs {b} dollars. How much do {a} tickets cost?
{a} tickets cost {a} x {b} = {y} dollars.

mul
{N} earns {b} dollars an hour and works {a} hours. How much does {N} earn?
{N} earns {a} x {b} = {y} dollars.

mul
{M} has {b} {things}. {N} has {a} times as many {things} as {M}. How many {things} does {N} have?
{N} has {a} x {b} = {y} {things}.

mul
There are {a} rows of chairs with {b} chairs in each row. {d} people are in the hall. How many chairs are there?
There are {a} x {b} = {y} chairs.

mul
{N} gives {b} {things} to each of {a} friends. How many {things} does {N} give away?
{N} gives away {a} x {b} = {y} {things}.

mul
If each pack of {things} costs {b} dollars, how much must {N} pay for {a} packs?
{N} must pay {a} x {b} = {y} dollars.

div
{N} shares {a} {things} equally among {b} friends. How many {things} does each friend get?
Each friend gets {a} / {b} = {y} {things}.

div
{N} puts {a} {things} into {boxes} of {b}. How many {boxes} does {N} need?
{N} needs {a} / {b} = {y} {boxes}.

div
{N} has {a} {things} in {b} {boxes}, the same number in each {box}. How many {things} are in each {box}?
There are {a} / {b} = {y} {things} in each {box}.

div
{N} paid {a} dollars for {b} {things}. How much did each cost?
Each cost {a} / {b} = {y} dollars.

div
A car drives {a} miles in {b} hours at the same speed. How many miles does it drive in one hour?
It drives {a} / {b} = {y} miles in one hour.

div
{N} has {a} {things}. {N} has {b} times as many {things} as {M}. How many {things} does {M} have?
{M} has {a} / {b} = {y} {things}.

div
A class of {a} children is split into groups of {b}. There are {d} tables in the room. How many groups are there?
There are {a} / {b} = {y} groups.

div
{N} reads {b} pages a day. A book has {a} pages. How many days does {N} need to finish the book?
{N} needs {a} / {b} = {y} days.

add_add
{N} has {a} {things}, {M} has {b} and their friend has {c}. How many {things} do they have together?
{N} and {M} have {a} + {b} = {x} {things}.
Together they have {x} + {c} = {y} {things}.

add_add
{N} ran {a} miles on Monday, {b} miles on Tuesday and {c} miles on Wednesday. How many miles did {N} run in all?
On Monday and Tuesday {N} ran {a} + {b} = {x} miles.
In all {N} ran {x} + {c} = {y} miles.

add_sub
{N} had {a} {things} and bought {b} more. Then {N} gave {c} to {M}. How many {things} does {N} have now?
{N} had {a} + {b} = {x} {things} after buying more.
Now {N} has {x} - {c} = {y} {things}.

add_sub
There were {a} boys and {b} girls at a party. {c} children went home. How many children are still there?
There were {a} + {b} = {x} children.
{x} - {c} = {y} children are still there.

sub_add
{N} had {a} {things}. {N} lost {b} of them and then found {c} {things}. How many {things} does {N} have now?
After losing some, {N} had {a} - {b} = {x} {things}.
Now {N} has {x} + {c} = {y} {things}.

sub_add
A bus carried {a} people. {b} got off and {c} got on. How many people are on the bus now?
After some got off there were {a} - {b} = {x} people.
Now there are {x} + {c} = {y} people on the bus.

sub_sub
{N} baked {a} {things}. {N} ate {b} and sold {c}. How many {things} are left?
After eating there were {a} - {b} = {x} {things}.
There are {x} - {c} = {y} {things} left.

sub_sub
{N} had {a} dollars. {N} spent {b} dollars on food and {c} dollars on a book. How much money is left?
After the food {N} had {a} - {b} = {x} dollars.
{N} has {x} - {c} = {y} dollars left.

mul_add
{N} has {a} {boxes} of {b} {things} and {c} loose {things}. How many {things} does {N} have in all?
The {boxes} hold {a} x {b} = {x} {things}.
In all {N} has {x} + {c} = {y} {things}.

mul_add
{N} buys {a} shirts for {b} dollars each and a hat for {c} dollars. How much does {N} pay?
The shirts cost {a} x {b} = {x} dollars.
{N} pays {x} + {c} = {y} dollars.

mul_sub
{N} bought {a} {boxes} with {b} {things} each and used {c} of the {things}. How many {things} are left?
{N} bought {a} x {b} = {x} {things}.
There are {x} - {c} = {y} {things} left.

mul_sub
{N} works {a} hours for {b} dollars an hour and then spends {c} dollars. How much money is left?
{N} earns {a} x {b} = {x} dollars.
{N} has {x} - {c} = {y} dollars left.

add_mul
A {box} holds {a} {things} and {b} {others}. How many items are in {c} such {boxes}?
One {box} holds {a} + {b} = {x} items.
{c} {boxes} hold {x} x {c} = {y} items.

add_mul
{N} does {a} push-ups in the morning and {b} in the evening, every day. How many push-ups does {N} do in {c} days?
{N} does {a} + {b} = {x} push-ups a day.
In {c} days {N} does {x} x {c} = {y} push-ups.

sub_mul
{N} had {a} {things} and threw away {b}. {N} sold the rest for {c} dollars each. How much money did {N} get?
{N} sold {a} - {b} = {x} {things}.
{N} got {x} x {c} = {y} dollars.

add_div
{N} has {a} {things} and {M} has {b}. They put them all into {boxes} of {c}. How many {boxes} do they fill?
Together they have {a} + {b} = {x} {things}.
They fill {x} / {c} = {y} {boxes}.

add_div
{a} girls and {b} boys make teams of {c}. How many teams are there?
There are {a} + {b} = {x} children.
There are {x} / {c} = {y} teams.

sub_div
{N} had {a} {things}. {N} ate {b} and shared the rest equally among {c} friends. How many {things} did each friend get?
There were {a} - {b} = {x} {things} to share.
Each friend got {x} / {c} = {y} {things}.

mul_mul
A school has {a} classes. Each class has {b} tables with {c} chairs each. How many chairs are there?
There are {a} x {b} = {x} tables.
There are {x} x {c} = {y} chairs.

mul_mul
{N} feeds {a} dogs {b} times a day with {c} biscuits each time. How many biscuits does {N} need for a day?
That is {a} x {b} = {x} meals a day.
{N} needs {x} x {c} = {y} biscuits for a day.

mul_div
{N} has {a} {boxes} with {b} {things} each and shares them equally among {c} people. How many {things} does each get?
{N} has {a} x {b} = {x} {things}.
Each gets {x} / {c} = {y} {things}.

half_add
{N} sold {a} {things} on Saturday and half as many on Sunday. How many {things} did {N} sell in all?
On Sunday {N} sold {a} / 2 = {x} {things}.
In all {N} sold {a} + {x} = {y} {things}.

twice_add
{M} has {a} {things}. {N} has {b} times as many. How many {things} do they have together?
{N} has {a} x {b} = {x} {things}.
Together they have {a} + {x} = {y} {things}.

more_add
{M} has {a} {things}. {N} has {b} more than {M}. How many {things} do they have together?
{N} has {a} + {b} = {x} {things}.
Together they have {a} + {x} = {y} {things}.
"""

TEMPLATES = _templates()
