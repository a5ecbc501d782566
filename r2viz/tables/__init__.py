"""The paper's tables beside what is counted and measured here.

`published` is what the paper prints, `comparison` joins it with the zoo and with what `measure` found on pictures,
`layout` writes the result as text, CSV, LaTeX or JSON.
"""
