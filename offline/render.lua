-- Turns woven chapters into the pages of a site, or into one Typst document.
-- Reads a JSON description of the book, answers with JSON: pages, files they need, problems.

local book = pandoc.json.decode(io.read("a"), false)
local typst = book.target == "typst"
local kinds = { fig = "Figure", tbl = "Table", eq = "Equation", sec = "Section" }
local callouts = { note = "Note", tip = "Tip", warning = "Warning", important = "Important",
  caution = "Caution" }
local labels, problems, files, page_of = {}, pandoc.List(), {}, {}
local links = book.links and dofile(book.links) -- the book's own filter, if it has one
local here, tabsets = nil, 0 -- the page at work; how many tabsets there have been

local function problem(label, text) problems:insert { file = here.file, label = label, text = text } end
local function raw(text) return pandoc.RawBlock(book.target, text) end
local function inlines(markdown)
  return pandoc.utils.blocks_to_inlines(pandoc.read(markdown or "", "markdown").blocks)
end
local function markup(content)
  local text = pandoc.write(pandoc.Pandoc { pandoc.Plain(content) }, typst and "typst" or "html5")
  return (text:gsub("%s+$", ""))
end
local function quote(text) return '"' .. text:gsub('[\\"]', "\\%0"):gsub("\n", "\\n") .. '"' end
local function escape(text)
  return (text:gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }))
end

-- ## What belongs to this format: conditional content, callouts, tabsets, code --------------------

local function conditional(el)
  local shown = el.classes:includes "content-visible"
  if not shown and not el.classes:includes "content-hidden" then return nil end
  local when, unless = el.attributes["when-format"], el.attributes["unless-format"]
  local holds = (not when or when == book.target) and (not unless or unless ~= book.target)
  return holds == shown and el.content or {}
end

local function callout(el, kind)
  local title, body = pandoc.Inlines(callouts[kind]), el.content
  if el.attributes.title then
    title = inlines(el.attributes.title)
  elseif body[1] and body[1].t == "Header" then
    title = body:remove(1).content
  end
  local before, between, after = '#callout("' .. kind .. '", [', "])[", "]"
  if not typst then
    local fold = el.attributes.collapse
    local open = fold == "false" and " open" or ""
    before = ('<%s class="callout callout-%s"%s>'):format(fold and "details" or "div", kind, open)
      .. (fold and "<summary>" or '<p class="callout-title">')
    between = fold and "</summary>" or "</p>"
    after = fold and "</details>" or "</div>"
  end
  return pandoc.Blocks { raw(before), pandoc.Plain(title), raw(between) } .. body .. { raw(after) }
end

local function tabset(el)
  local out, level = pandoc.Blocks {}, nil
  tabsets = tabsets + 1
  for _, block in ipairs(el.content) do
    level = level or block.level
    if block.t ~= "Header" or block.level ~= level then
      out:insert(block)
    elseif typst then
      out:insert(pandoc.Para { pandoc.Strong(block.content) })
    else
      local open = #out == 0 and " open" or ""
      if #out > 0 then out:insert(raw "</details>") end
      out:insert(raw(('<details name="tabs-%d"%s><summary>'):format(tabsets, open)))
      out:extend { pandoc.Plain(block.content), raw "</summary>" }
    end
  end
  if typst then return out end
  out:insert(raw "</details></div>")
  return pandoc.Blocks { raw '<div class="tabset">' } .. out
end

local function code(block)
  local fold, summary = block.attributes["code-fold"], block.attributes["code-summary"]
  block.attributes = {}
  if typst then
    local call = block.classes:includes "output" and "#output" or "#source"
    return raw(call .. ("(%s, %s)"):format(quote(block.classes[1] or ""), quote(block.text)))
  elseif fold == "true" or fold == "show" then
    local open = fold == "show" and " open" or ""
    return { raw(('<details class="fold"%s><summary>%s</summary>'):format(open, escape(summary))),
      block, raw "</details>" }
  end
  return block
end

-- Browsers and Typst fit columns better than a count of dashes does.
local function natural_widths(el)
  el.colspecs = el.colspecs:map(function(spec) return { spec[1] } end)
  return el
end

local prepare = {
  Span = conditional,
  Table = natural_widths,
  CodeBlock = code,
  Div = function(el)
    local content = conditional(el)
    if content then return content end
    for _, class in ipairs(el.classes) do
      local kind = class:match "^callout%-(%a+)$"
      if callouts[kind] then return callout(el, kind) end
      if class == "panel-tabset" then return tabset(el) end
    end
  end,
}

-- ## Numbers: sections, figures, tables, equations, by chapter ------------------------------------

local function register(id, kind, number, text)
  if labels[id] then problem(id, "this label stands twice") end
  labels[id] = { kind = kind, number = number, text = text, page = here }
  here.ids[id] = id
end

local function next_number(kind)
  here.count[kind] = (here.count[kind] or 0) + 1
  return (here.number and here.number .. "." or "") .. here.count[kind]
end

local function heading(h)
  local id, prefix = h.identifier, nil
  if h.level > 1 and here.sections and not h.classes:includes "unnumbered" then
    local steps = here.steps
    for level = 2, h.level do steps[level] = steps[level] or 0 end
    for level = h.level + 1, 6 do steps[level] = nil end
    steps[h.level] = steps[h.level] + 1
    prefix = (here.number and here.number .. "." or "") .. table.concat(steps, ".", 2, h.level)
    h.content:insert(1, pandoc.Span(prefix, { class = "number" }))
    h.content:insert(2, pandoc.Space())
  end
  if id:match "^sec%-" then register(id, "Section", prefix, h.content) end
  if typst then
    h.identifier = labels[id] and id or here.stem .. "--" .. id
    h.level = h.level + (book.is_book and 1 or 0)
  end
  here.ids[id] = h.identifier
  return h
end

local on_page = {
  Image = function(el)
    return book.facts.embed and el or pandoc.Link({ el }, el.src, "", { class = "enlarge" })
  end,
  Table = function(el) return { raw '<div class="scroll">', el, raw "</div>" } end,
}

-- A figure or table with its caption, numbered when it has a label.
local function float(id, content, caption, kind)
  local labelled = id:match "^fig%-" or id:match "^tbl%-"
  if labelled then
    local number = next_number(kind)
    register(id, kinds[kind], number)
    caption = pandoc.Inlines { kinds[kind] .. "\u{a0}" .. number .. ":", pandoc.Space() } .. caption
  end
  local long = #caption > 0 and pandoc.Blocks { pandoc.Plain(caption) } or pandoc.Blocks {}
  if typst and kind == "tbl" and #content == 1 and content[1].t == "Table" then
    content[1].identifier, content[1].caption = id, { long = long }
    if #content[1].bodies[1].body > 20 then -- only a long table may break over pages
      content:insert(1, raw "#[#show figure: set block(breakable: true)")
      content:insert(raw "]")
    end
    return content, false
  elseif typst then
    return pandoc.Figure(content, { long = long }, { id = id }), false
  end
  if #long > 0 then long = pandoc.Blocks { raw "<figcaption>" } .. long .. { raw "</figcaption>" } end
  content = content:walk(on_page)
  local open = raw(('<figure%s class="%s">'):format(id ~= "" and ' id="' .. id .. '"' or "", kind))
  local inner = kind == "tbl" and long .. content or content .. long
  return pandoc.Blocks { open } .. inner .. { raw "</figure>" }, false
end

local function float_div(el)
  local id, content, caption = el.identifier, el.content, pandoc.Inlines {}
  if not (id:match "^fig%-" or id:match "^tbl%-" or el.classes:includes "captioned") then return nil end
  local last = content[#content]
  if #content > 1 and last.t == "Para" and pandoc.utils.stringify(last) ~= "" then
    caption = content:remove().content
  end
  return float(id, content, caption, id:match "^tbl" and "tbl" or "fig")
end

local function caption_of(el) return pandoc.utils.blocks_to_inlines(el.caption.long) end

local function equations(list)
  for i = #list, 1, -1 do
    local id = list[i].t == "Str" and list[i].text:match "^{#(eq%-[^}]+)}[.,;]?$"
    local at = id and (list[i - 1].t == "Space" and i - 2 or i - 1)
    if id and list[at].t == "Math" then
      local number = next_number "eq"
      register(id, "Equation", number)
      local open, close = '<span class="equation" id="' .. id .. '">',
        '<span class="number">(' .. number .. ")</span></span>"
      if typst then
        open = '#[#set math.equation(numbering: _ => "(' .. number .. ')")\n'
        close = " <" .. id .. ">]"
      end
      for _ = at + 1, i do list:remove(at + 1) end
      list:insert(at + 1, pandoc.RawInline(book.target, close))
      list:insert(at, pandoc.RawInline(book.target, open))
    end
  end
  return list
end

local number = {
  traverse = "topdown",
  Header = heading,
  Div = float_div,
  Inlines = equations,
  Figure = function(el) return float(el.identifier, el.content, caption_of(el), "fig") end,
  Table = function(el)
    local id, caption = el.identifier, caption_of(el)
    el.identifier, el.caption = "", { long = {} }
    return float(id, pandoc.Blocks { el }, caption, "tbl")
  end,
}

-- ## References ------------------------------------------------------------------------------------

local function reference(cite)
  local out = pandoc.Inlines {}
  for _, citation in ipairs(cite.citations) do
    local id = citation.id:sub(1, 1):lower() .. citation.id:sub(2)
    local kind, entry = kinds[id:match "^(%a+)%-"], labels[id]
    if kind and not entry then
      problem(citation.id, "nothing has the label")
      out:insert("?" .. id)
    elseif kind then
      local text = pandoc.Inlines(entry.number or entry.text)
      local prefix = #citation.prefix > 0 and citation.prefix or pandoc.Inlines(entry.kind)
      local bare = citation.mode == "SuppressAuthor" or not entry.number
      if not bare then text = prefix .. { pandoc.Str "\u{a0}" } .. text end
      if #out > 0 then out:extend { pandoc.Str ",", pandoc.Space() } end
      out:insert(pandoc.Link(text, "#" .. id))
    elseif not kind and not here.known[citation.id] then
      problem(citation.id, "the bibliography has no")
    end
  end
  if #out > 0 then return out end
end

-- A path as written in a chapter, from the root of the project.
local function from_root(path)
  local steps = pandoc.List {}
  if path:sub(1, 1) ~= "/" then path = pandoc.path.directory(here.file) .. "/" .. path end
  for step in path:gmatch "[^/]+" do
    if step == ".." then steps:remove() elseif step ~= "." then steps:insert(step) end
  end
  return table.concat(steps, "/")
end

local function link(el)
  if el.target:match "^%a[%w+.-]*:" then return nil end
  local path, id = el.target:match "^([^#]*)#?(.*)$"
  local page = path == "" and (labels[id] and labels[id].page or here) or page_of[from_root(path)]
  if not page then
    files[from_root(path)] = here.file
    el.target = here.up .. from_root(path)
    return typst and el.content or el
  end
  local anchor = id == "" and page.anchor or page.ids[id]
  if not anchor then problem(id, "nothing has the label") end
  if typst then
    el.target = "#" .. (anchor or "")
  else
    el.target = (page == here and "" or here.up .. page.href) .. (id == "" and "" or "#" .. id)
  end
  return el
end

local function width(image)
  local value = image.attributes.width or ""
  local pixels = tonumber(value:match "^(%d+)p?x?$")
  if pixels then value = pixels > 590 and "100%" or pixels * 0.75 .. "pt" end
  return value == "" and "" or ", width: " .. value
end

local function image(el)
  local alt, pdf = el.attributes["fig-alt"] or pandoc.utils.stringify(el.caption), el.attributes.pdf
  local path = from_root(typst and pdf or el.src)
  el.attributes["fig-alt"], el.attributes.pdf = nil, nil
  if not typst then el.attributes.loading = "lazy" end -- a hidden theme's figures are not fetched
  files[path] = here.file
  if typst and el.classes:includes "dark-content" then return {} end
  if typst then
    local call = "#image(%s, alt: %s%s)"
    return pandoc.RawInline("typst", call:format(quote("/" .. path), quote(alt), width(el)))
  end
  el.src, el.caption = here.up .. path, pandoc.Inlines { pandoc.Str(alt) }
  if book.facts.embed then
    local kind, bytes = pandoc.mediabag.fetch(book.site .. "/" .. path)
    el.src = pandoc.mediabag.make_data_uri(kind, bytes)
  end
  return el
end

-- Blocks of Typst cannot break over pages at will, so only those that are linked to remain.
local function unwrap(el) return typst and el.identifier == "" and el.content or nil end

-- ## The pages -------------------------------------------------------------------------------------

local function remember_ids(page)
  local function remember(el)
    if el.identifier == "" then return end
    page.ids[el.identifier] = page.ids[el.identifier] or el.identifier
    if el.identifier:match "^ref%-" then labels[el.identifier] = { page = page } end
  end
  page.blocks:walk { Div = remember, Span = remember }
end

local function open_page(page)
  here = page
  page.count, page.steps, page.ids, page.known = {}, { "" }, {}, {}
  page.href = page.file:gsub("%.qmd$", ".html")
  page.stem = page.file:match "([^/]+)%.qmd$"
  page.up = page.file:gsub("[^/]+/", "../"):gsub("[^/]+$", "")
  page.sections = book.sections and page.meta["number-sections"] ~= false
    and (page.number or not book.is_book)
  page_of[page.file] = page
  local blocks = pandoc.read(page.markdown, "markdown").blocks
  if links and not typst then blocks = links(blocks, page.file, book.root) end
  blocks = blocks:walk(prepare)
  local title = blocks[1] and blocks[1].t == "Header" and blocks[1].level == 1 and blocks:remove(1)
  page.title, page.anchor = title and title.content or pandoc.Inlines(page.stem), page.stem
  if title and title.identifier:match "^sec%-" then
    page.anchor = title.identifier
    local name = not book.is_book and "Section" or page.number and page.number:match "%a" and "Appendix"
    register(page.anchor, name or "Chapter", page.number, page.title)
  end
  page.blocks = blocks:walk(number)
  remember_ids(page)
end

local function cite_all()
  local meta = { bibliography = book.bibliography, csl = book.csl, ["link-citations"] = true,
    nocite = pandoc.Blocks {} }
  local all = pandoc.Blocks {}
  for _, page in ipairs(book.pages) do
    meta.nocite:extend(pandoc.read(page.meta.nocite or "", "markdown").blocks)
    all:insert(pandoc.Div(page.blocks))
  end
  local known = {}
  for _, entry in ipairs(pandoc.utils.references(pandoc.Pandoc(all, meta))) do known[entry.id] = true end
  for i, page in ipairs(book.pages) do
    here, page.known = page, known
    all[i].content = page.blocks:walk { Cite = reference }
  end
  if book.bibliography then all = pandoc.utils.citeproc(pandoc.Pandoc(all, meta)).blocks end
  for i, page in ipairs(book.pages) do
    page.blocks = all[i].content
    if i == #book.pages then page.blocks:extend(pandoc.Blocks { table.unpack(all, i + 1) }) end
    remember_ids(page)
  end
end

local function full_title(page)
  if not page.number then return page.title end
  if page.number:match "%a" then return pandoc.Inlines("Appendix " .. page.number .. " — ") .. page.title end
  return pandoc.Inlines { pandoc.Span(page.number, { class = "number" }), pandoc.Space() } .. page.title
end

local function item(page, from)
  return page and { href = from.up .. page.href, number = page.number, title = markup(page.title),
    current = page == from or nil }
end

local function contents(from)
  local groups = pandoc.List {}
  for i, page in ipairs(book.pages) do
    if i == 1 or page.part ~= book.pages[i - 1].part then
      groups:insert { part = page.part and markup(inlines(page.part)), pages = pandoc.List {} }
    end
    groups[#groups].pages:insert(item(page, from))
  end
  return groups
end

local function html_page(i, page, template)
  local title = pandoc.utils.stringify(full_title(page))
  local variables = { title = markup(full_title(page)), up = page.up, file = page.file,
    pagetitle = escape(page == book.pages[1] and book.title or title .. " – " .. book.title),
    description = escape(page.meta.description or book.description or ""),
    subtitle = markup(inlines(page.meta.subtitle)), abstract = markup(inlines(page.meta.abstract)),
    anchor = page.anchor, groups = contents(page), is_book = book.is_book, front = i == 1 and book.is_book or nil,
    previous = book.is_book and item(book.pages[i - 1], page),
    next = book.is_book and item(book.pages[i + 1], page), book = book.facts }
  return (pandoc.write(pandoc.Pandoc(page.blocks), "html5", pandoc.WriterOptions {
    html_math_method = "mathml", template = template, variables = variables, toc_depth = 3,
    table_of_contents = book.toc and page.meta.toc ~= false }))
end

local function typst_book(template)
  local all = pandoc.Blocks {}
  for i, page in ipairs(book.pages) do
    if page.part and page.part ~= (book.pages[i - 1] or {}).part then
      all:insert(pandoc.Header(1, inlines(page.part)))
    end
    if book.is_book then all:insert(pandoc.Header(2, full_title(page), { id = page.anchor })) end
    for _, key in ipairs { "subtitle", "abstract" } do
      if page.meta[key] then all:insert(pandoc.Para { pandoc.Emph(inlines(page.meta[key])) }) end
    end
    all:extend(page.blocks)
  end
  return (pandoc.write(pandoc.Pandoc(all), "typst-citations", pandoc.WriterOptions {
    template = template, variables = { book = book.facts, toc = book.toc, is_book = book.is_book } }))
end

local facts = book.facts
facts.plain_title, facts.plain_author = quote(book.title), quote(facts.author or "")
for _, key in ipairs { "title", "subtitle", "author" } do
  facts[key] = facts[key] and markup(inlines(facts[key]))
end
for _, page in ipairs(book.pages) do open_page(page) end
cite_all()
for _, page in ipairs(book.pages) do
  here = page
  page.blocks = page.blocks:walk { Image = image, Link = link, Div = unwrap }
end
local template, pages = pandoc.template.compile(book.template), {}
if #problems == 0 and typst then pages[book.main] = typst_book(template) end
if #problems == 0 and not typst then
  for i, page in ipairs(book.pages) do pages[page.href] = html_page(i, page, template) end
end
print(pandoc.json.encode { pages = pages, problems = problems, files = files })
