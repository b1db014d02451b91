// A table of readouts that can be searched, filtered, sorted and saved.
const part = (id) => document.getElementById(id);
const { columns, rows, unit, digits } = JSON.parse(part("explorer-data").textContent);
const source = new Blob([part("explorer-library").textContent], { type: "text/javascript" });
const { jQuery } = await import(URL.createObjectURL(source));

const at = Object.fromEntries(columns.map((name, i) => [name, i]));
const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const fixed = (x) => (x === null ? "–" : x.toFixed(digits).replace("-", "−"));
const shown = (draw) => (value, kind, row) => (kind === "display" ? draw(value, row) : value);
const text = shown(escape);
const number = shown(fixed);
const interval = (x, low, high) => (x === null ? "–" : `${fixed(x)} [${fixed(low)}, ${fixed(high)}]`);
const signs = { up: "▲", down: "▼", unclear: "●" };

// One scale for all rows: zero, the pooled intervals, and all but the most extreme plain estimates.
const known = (name) => rows.map((row) => row[at[name]]).filter((x) => x !== null).sort((a, b) => a - b);
const plain = known("plain");
const end = (share) => plain[Math.round(share * (plain.length - 1))] ?? 0;
const low = Math.min(0, known("pooled_lower")[0] ?? 0, end(0.02));
const high = Math.max(0, known("pooled_upper").at(-1) ?? 0, end(0.98));
const WIDTH = 100;
const x = (value) => 6 + (WIDTH - 12) * Math.min(Math.max((value - low) / (high - low || 1), -0.02), 1.02);

function picture(row) {
  const [plain, pooled] = [row[at.plain], row[at.pooled]];
  if (pooled === null) return "";
  const p = x(plain);
  return `<svg width="${WIDTH}" height="18" aria-hidden="true"><path class="zero" d="M${x(0)} 0V18"/>` +
    `<path d="M${x(row[at.pooled_lower])} 9H${x(row[at.pooled_upper])}"/><circle cx="${x(pooled)}" cy="9" r="4"/>` +
    `<path class="plain" d="M${p - 3.5} 5.5l7 7m0-7l-7 7"/></svg>`;
}

// Creators that could not be estimated come last, whichever way numbers are sorted.
const sorted = (sign) => (a, b) => (a === null) - (b === null) || sign * (a - b);
Object.assign(jQuery.fn.dataTable.ext.type.order, { "known-asc": sorted(1), "known-desc": sorted(-1) });

const table = document.createElement("table");
table.className = "explored";
table.setAttribute("aria-label", "Readouts of all creators");
part("explorer").append(table);
const grid = jQuery(table).DataTable({
  data: rows,
  order: [[3, "desc"]],
  pageLength: 10,
  lengthMenu: [10, 25, 100],
  autoWidth: false,
  layout: { topStart: "search", topEnd: null, bottomStart: "info", bottomEnd: ["pageLength", "paging"] },
  language: {
    search: "Find a creator or a genre",
    lengthMenu: "_MENU_ a page",
    info: "_START_ to _END_ of _TOTAL_ creators",
    infoEmpty: "no creators",
    infoFiltered: "(of _MAX_)",
    zeroRecords: "No creator fits.",
  },
  columns: [
    { title: "Creator", data: at.creator_id, render: text },
    { title: "Genre", data: at.genre, render: text },
    { title: "Users", data: at.n_total, render: shown((n) => n?.toLocaleString("en") ?? "–"), className: "number", type: "known" },
    { title: "Pooled, 95% interval", data: at.pooled, className: "number", type: "known",
      render: shown((_, row) => interval(row[at.pooled], row[at.pooled_lower], row[at.pooled_upper])) },
    { title: "Plain", data: at.plain, render: number, className: "number", type: "known" },
    { title: "×&nbsp;plain ●&nbsp;pooled", data: null, orderable: false, searchable: false,
      render: (_, kind, row) => (kind === "display" ? picture(row) : "") },
    { title: "P(&gt;&nbsp;0)", data: at.p_positive, render: number, className: "number", type: "known" },
    { title: "Shrinkage", data: at.shrinkage, render: number, className: "number", type: "known" },
    { title: "Verdict", data: at.verdict,
      render: shown((verdict) => `<span class="${escape(verdict)}">${signs[verdict] ?? ""} ${escape(verdict)}</span>`) },
  ].map((column) => ({ ...column, searchable: [at.creator_id, at.genre].includes(column.data) })),
});

// Exact genre and verdict, beside the search by any part of a name.
function choice(name, column) {
  const values = [...new Set(rows.map((row) => row[column]))].sort();
  const select = document.createElement("select");
  select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
  select.setAttribute("aria-label", name);
  const box = document.createElement("label");
  box.append(name + " ", select);
  select.onchange = () => grid.draw();
  return { box, keeps: (row) => !select.value || row[column] === select.value };
}
const choices = [choice("Genre", at.genre), choice("Verdict", at.verdict)];
jQuery.fn.dataTable.ext.search.push((settings, _, i) =>
  settings.nTable !== table || choices.every(({ keeps }) => keeps(rows[i])));

// What is listed, as a file: made here, since there is nobody to ask.
const save = document.createElement("button");
save.type = "button";
save.textContent = "Save as CSV";
save.onclick = () => {
  const quote = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const listed = grid.rows({ search: "applied", order: "applied" }).data().toArray();
  const lines = [columns, ...listed].map((row) => row.map((value) => quote(String(value ?? ""))).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = "readouts.csv";
  link.click();
};
part("explorer").querySelector(".dt-search").after(...choices.map(({ box }) => box), save);
part("explorer").dataset.unit = unit;
