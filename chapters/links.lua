-- The links that no chapter has to write: from the first use of a term on a page to the glossary,
-- and to the page's notebook and data. A filter for Quarto; the offline edition calls the function.
local GLOSSARY = "b-glossary.qmd"

local function id_of(term) return "term-" .. term:lower():gsub("[^%w]+", "-"):gsub("%-$", "") end

-- The terms, longest first: each as its words, in small letters, and its address.
local function read_terms(path)
  local terms, previous, file = pandoc.List {}, "", io.open(path)
  if not file then return terms end
  for line in file:lines() do
    if line:match "^:%s" and previous ~= "" then
      local words = pandoc.List {}
      for word in previous:gsub("%s*%b()", ""):lower():gmatch "%S+" do words:insert(word) end
      terms:insert { words = words, id = id_of(previous) }
    end
    previous = line
  end
  file:close()
  terms:sort(function(a, b) return #a.words > #b.words end)
  return terms
end

-- A word as written, in its parts: what opens before it, the word, what closes after it.
local function parts(text)
  local before, word, after = text:match "^([(%[\"“‘']*)(.-)([%p]*)$"
  for _, mark in ipairs { "”", "’", "…" } do
    if word:sub(-#mark) == mark then word, after = word:sub(1, -#mark - 1), mark .. after end
  end
  return before, word, after
end

local function same(word, written, last)
  written = written:lower()
  return written == word or (last and (written == word .. "s" or written == word .. "es"))
end

-- Whether a term starts at an inline: the links that stand for it and how far it reaches.
local function found(inlines, at, term, target)
  local count, content = #term.words, pandoc.Inlines {}
  local opening, closing = "", ""
  for i, word in ipairs(term.words) do
    local el = inlines[at + 2 * (i - 1)]
    local gap = inlines[at + 2 * i - 1]
    if not el or el.t ~= "Str" then return nil end
    local before, written, after = parts(el.text)
    if not same(word, written, i == count) then return nil end
    if (i > 1 and before ~= "") or (i < count and after ~= "") then return nil end
    if i < count and not (gap and (gap.t == "Space" or gap.t == "SoftBreak")) then return nil end
    if i == 1 then opening = before end
    if i == count then closing = after end
    content:insert(pandoc.Str(written))
    if i < count then content:insert(pandoc.Space()) end
  end
  local out = pandoc.Inlines { pandoc.Link(content, target, "", { class = "term" }) }
  if opening ~= "" then out:insert(1, pandoc.Str(opening)) end
  if closing ~= "" then out:insert(pandoc.Str(closing)) end
  return out, at + 2 * (count - 1)
end

local function link_terms(blocks, terms, page)
  local used = {}
  local function link_paragraph(paragraph)
    local old, new, at = paragraph.content, pandoc.Inlines {}, 1
    while at <= #old do
      local links, last
      for _, term in ipairs(terms) do
        if not links and not used[term.id] then
          links, last = found(old, at, term, page .. "#" .. term.id)
          if links then used[term.id] = true end
        end
      end
      new:extend(links or { old[at] })
      at = (last or at) + 1
    end
    paragraph.content = new
    return paragraph
  end
  return blocks:walk {
    traverse = "topdown",
    Div = function(el) -- captions stay as they are
      if el.identifier:match "^fig%-" or el.identifier:match "^tbl%-" then return el, false end
    end,
    Para = link_paragraph,
  }
end

local function give_addresses(blocks)
  return blocks:walk { DefinitionList = function(list)
    for _, item in ipairs(list.content) do
      local id = id_of(pandoc.utils.stringify(item[1]))
      item[1] = pandoc.Inlines { pandoc.Span(item[1], pandoc.Attr(id)) }
    end
    return list
  end }
end

-- A last line: the page as a notebook, and the tables that its code reads.
local function downloads(blocks, file, up)
  local name, line, seen = pandoc.path.filename(file):gsub("%.qmd$", ".ipynb"), pandoc.Inlines {}, {}
  local function add(text, target, label)
    line:extend { pandoc.Str(text), pandoc.Space() }
    -- Quarto need not look for a chapter behind it.
    local marks = { download = label, ["data-noresolveinput"] = "true" }
    line:insert(pandoc.Link(label, up .. target, "", marks))
  end
  add("Notebook:", "notebooks/" .. name, name)
  blocks:walk { CodeBlock = function(block)
    for data in block.text:gmatch '"(data/[%w_-]+%.csv)"' do
      if not seen[data] then add(next(seen) and "," or ". Data:", data, data:sub(6)) end
      seen[data] = true
    end
  end }
  blocks:insert(pandoc.Div(pandoc.Para(line), { class = "downloads" }))
  return blocks
end

-- `file` is the page's, from the root of the project at `root`.
local function linked(blocks, file, root)
  local name, inside = pandoc.path.filename(file), pandoc.path.directory(file) == "chapters"
  if name == GLOSSARY then return give_addresses(blocks) end
  if name == "references.qmd" then return blocks end
  local terms = read_terms(pandoc.path.join { root, "chapters", GLOSSARY })
  blocks = link_terms(blocks, terms, (inside and "" or "chapters/") .. GLOSSARY)
  return downloads(blocks, file, inside and "../" or "")
end

if not quarto then return linked end

return { {
  Pandoc = function(doc)
    if not quarto.doc.is_format "html" then return nil end
    local root = quarto.project.directory
    doc.blocks = linked(doc.blocks, pandoc.path.make_relative(quarto.doc.input_file, root), root)
    return doc
  end,
} }
