"""The offline edition: renders the Quarto sources through Pandoc, Jupyter, Typst and Pagefind."""
