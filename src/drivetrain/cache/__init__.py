"""Answers given again: a provider's answer to one exact request, in one worker's memory, at no cost."""
