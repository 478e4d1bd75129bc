"""The model that the route of `intent` asks first: trained on data/training.csv, of which no text is sent."""

import drivetrain as dt

model = dt.TrainedModel(
    "intent",
    dataset="intents",
    recipe=dt.TextClassification(),
    label="intent",
    text="text",
    risks=[0.01, 0.02, 0.05],  # error rates for which the training looks for a confidence to answer from
    owner="web-chat@bank.example",
)
