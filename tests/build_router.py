"""A small random router, and prompts of two tasks that the shipped router doesn't know."""

import numpy as np
from slm_edge.edge.router.file import Background, RouterModel
from slm_edge.edge.router.hashing import N_SLOTS
from slm_edge.edge.router.words import NAMES


def small_router(seed=0):
    draw = np.random.default_rng(seed)
    model = RouterModel(
        tasks=("math", "code", "summarize"),
        bias=draw.normal(size=4).astype(np.float32),
        named=draw.normal(size=(4, len(NAMES))).astype(np.float32),
        slots=draw.normal(size=(N_SLOTS, 4)).astype(np.float32),
        temperature=1.0,
        thresholds={"math": 0.5, "code": 0.5, "summarize": 0.5},
    )
    return model.with_prompts(Background((("Hello", None), ("What is 2 + 2?", "math"))))


EXAMPLES = {
    "translate": {
        "taught": [
            "Translate to French: The house is on the hill.",
            "Translate into Spanish: Where can I buy a ticket?",
            "How do you say 'good evening' in Japanese?",
            "Please translate this sentence into German: My sister lives in Bern.",
            "English to Italian: I would like a glass of water.",
            "What is the Portuguese for 'butterfly'?",
            "Put this into Dutch: We are late again.",
            "Translate the following text into English.\n\nDer Hund schläft unter dem Tisch.",
            "Can you translate 'thank you very much' to Korean?",
            "Give me the Russian translation of: The winter is long.",
            "Translate: el gato come pescado",
            "I need this in French: The meeting starts at nine.",
            "Say 'happy birthday' in Polish.",
            "Translate this paragraph to Spanish.\n\nThe river floods every spring. Farmers wait for it.",
            "How would a German say: I am hungry?",
            "from english to turkish: good night",
            "Übersetze ins Englische: Das Wetter ist schön.",
            "Traduce al inglés: Mañana vamos al mar.",
            "Translate to Chinese: I have two brothers.",
            "What does 'bonne chance' mean in English?",
        ],
        "unseen": [
            "Translate into Swedish: The bread is fresh.",
            "Please translate 'see you tomorrow' into Greek.",
            "How do you say 'library' in Spanish?",
            "Translate the following to French.\n\nThe shop is closed on Mondays.",
            "Give me the German translation of: She plays the violin.",
            "Translate to English: La lune est belle ce soir.",
            "Can you put this sentence into Italian: We need more time.",
            "Translate this email into Spanish:\n\nDear Ana, the parcel has arrived. Thank you, Tom",
            "What is the French word for 'mushroom'?",
            "translate to japanese: where is the station",
        ],
    },
    "sentiment": {
        "taught": [
            "Is this review positive or negative? The soup was cold and the waiter forgot us.",
            "Classify the sentiment: I love this phone, the camera is superb.",
            "Sentiment of: 'Worst film I have seen in years.'",
            "Label this tweet as positive, negative or neutral: Finally home after a long day, so happy!",
            "Positive or negative: The room smelled and nobody answered the phone.",
            "What is the sentiment of this comment? Great service, will come again.",
            "Decide if the customer is happy: The parcel came two weeks late and was broken.",
            "Classify as positive or negative.\n\nThe battery lasts two days and it charges quickly.",
            "Review: The seats were comfortable and the staff kind. Sentiment:",
            "Does this sound positive or negative? I expected more for that price.",
            "Sentiment analysis: The book is dull and far too long.",
            "Rate the sentiment of the text: A lovely little cafe with the best cake in town.",
            "Tell me whether this feedback is positive, negative or neutral: The course was okay.",
            "Is the following opinion negative? The update made everything slower.",
            "Label the sentiment.\n\nWe had a wonderful evening, thank you!",
            "Positive, negative or neutral? The package arrived on Tuesday.",
            "What feeling does this review express, positive or negative: Never again!",
            "Classify the sentiment of the sentence: The acting saved a weak story.",
            "Customer comment: 'It broke after one use.' Positive or negative?",
            "sentiment please: this game is so much fun",
        ],
        "unseen": [
            "Is this review positive or negative? The bed was soft and breakfast excellent.",
            "Classify the sentiment: The train was dirty and late.",
            "Sentiment of: 'I would buy it again any time.'",
            "Label this comment as positive, negative or neutral: The lamp is fine.",
            "Positive or negative: My kids adore this toy.",
            "What is the sentiment of this tweet? Third time the app crashed today...",
            "Classify as positive or negative.\n\nThe shoes fell apart after a week.",
            "Tell me whether this feedback is positive or negative: Best teacher ever.",
            "Review: Loud, crowded, overpriced. Sentiment:",
            "Does this sound positive or negative? The ending made me cry with joy.",
        ],
    },
    "sql": {
        "taught": [
            "Write a SQL query that lists all customers from Paris.",
            "SQL: total sales per region, largest first",
            "Select the five newest orders from the table orders.",
            "How do I join employees and departments in SQL?",
            "Query that finds duplicate email addresses in users",
            "SELECT the average price of products by category",
            "Delete all rows from logs that are older than 30 days.",
            "Create a table for books with title, author and year.",
            "Given tables students(id, name) and grades(student_id, grade), query each student's best grade.",
            "postgres query: users who never logged in",
            "Update the price of all products by 10 percent in MySQL.",
            "Which SQL statement counts the rows of a table?",
            "Add an index on orders.customer_id.",
            "Find the second highest salary with SQL.",
            "Write a query with a window function that ranks players by score.",
            "sqlite: insert a new row into tasks",
            "Return the names of departments with more than ten employees, SQL please.",
            "Group visits by month and count them, in SQL.",
            "LEFT JOIN customers with orders and show those without an order",
            "Alter the table users: add a column for the phone number.",
        ],
        "unseen": [
            "Write an SQL query for the ten best selling books.",
            "SQL query: employees hired after 2020",
            "Join invoices with clients and sum the amounts per client.",
            "How do I delete duplicate rows from a table in MySQL?",
            "Tables cities(id, name) and trips(city_id, day). Query the number of trips to each city.",
            "Create a table for invoices with number, date and total.",
            "SELECT all products that cost more than the average",
            "Postgres: count the orders of each week",
            "Which query gives the customers who ordered in every month?",
            "Add a column birthday to the table members.",
        ],
    },
}
