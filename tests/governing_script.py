"""A scripted model of the tests'."""


def answer(request):
    return "scripted"
