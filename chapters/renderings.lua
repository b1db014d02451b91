-- Quarto pairs the light and the dark image of a cell only where the cell has no label: with one
-- it makes two subfigures of them. So label and caption go to a figure around the cell's output.
function Div(cell)
  if not (cell.attributes.renderings and cell.identifier:match("^fig%-")) then return nil end
  local label, caption = cell.identifier, pandoc.Para({})
  local code, shown = pandoc.List(), pandoc.List()
  for _, block in ipairs(cell.content) do
    (block.t == "CodeBlock" and code or shown):insert(block)
  end
  local output = pandoc.Div(shown, pandoc.Attr("", cell.classes, cell.attributes)):walk({
    Image = function(image)
      image.identifier, image.caption = "", {}
      image.attributes.loading = "lazy" -- the figures of the other theme are not fetched
      return image
    end,
    Figure = function(figure)
      caption = pandoc.Para(pandoc.utils.blocks_to_inlines(figure.caption.long))
      return figure.content
    end,
  })
  local figure = pandoc.Div({ output, caption }, pandoc.Attr(label))
  if #code == 0 then return figure end
  return { pandoc.Div(code, pandoc.Attr("", cell.classes)), figure }
end
