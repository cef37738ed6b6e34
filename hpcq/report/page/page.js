"use strict";
(() => {
  const collator = new Intl.Collator("en", { numeric: true });

  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // Empty cells and dashes are last in both directions.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value;
    if (value !== undefined) return Number(value);
    const text = cell.textContent.trim();
    return text === "" || text === "\u2013" ? null : text;
  };

  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : collator.compare(one, other);

  const sort = (table, heading) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [keyOf(row, heading.cellIndex), row]);
    keyed.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      return ascending ? compare(one, other) : compare(other, one);
    });
    body.append(...keyed.map(([, row]) => row));
  };

  const makeSortable = (table) => {
    for (const heading of table.tHead.rows[0].cells) {
      const button = element("button", { type: "button" }, ...heading.childNodes);
      button.addEventListener("click", () => sort(table, heading));
      heading.replaceChildren(button);
    }
  };

  const choicesOf = (table, heading) => {
    const texts = [...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex].textContent);
    return [...new Set(texts)].sort(collator.compare);
  };

  const makeFilters = (table) => {
    const search = element("input", { type: "search" });
    const controls = element("div", { className: "filters" }, element("label", {}, "contains", search));
    const selects = [];
    for (const heading of table.tHead.rows[0].cells) {
      if (!("choice" in heading.dataset)) continue;
      const choices = choicesOf(table, heading);
      if (choices.length < 2) continue;
      const select = element("select", {}, element("option", { value: "" }, "all"));
      choices.forEach((text, at) => select.append(element("option", { value: String(at) }, text || "(empty)")));
      controls.append(element("label", {}, heading.textContent, select));
      selects.push({ select, choices, column: heading.cellIndex });
    }
    const count = element("output", {});
    count.setAttribute("aria-live", "polite");
    controls.append(count);
    const update = () => {
      const wanted = search.value.toLowerCase();
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const fits =
          row.textContent.toLowerCase().includes(wanted) &&
          selects.every(
            ({ select, choices, column }) =>
              select.value === "" || row.cells[column].textContent === choices[Number(select.value)],
          );
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown} of ${table.tBodies[0].rows.length} lines`;
    };
    controls.addEventListener("input", update);
    controls.clear = () => {
      search.value = "";
      for (const { select } of selects) select.value = "";
      update();
    };
    update();
    table.parentElement.before(controls);
    return controls;
  };

  // One cell of a heat map is in the tab order; arrow keys move to the others.
  const makeGrid = (table) => {
    const links = [...table.querySelectorAll("a")];
    if (!links.length) return;
    const select = (link) => {
      for (const other of links) other.tabIndex = -1;
      link.tabIndex = 0;
    };
    select(links[0]);
    const linkAt = (row, column) => table.rows[row]?.cells[column]?.querySelector("a");
    table.addEventListener("focusin", (event) => event.target.matches("a") && select(event.target));
    table.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      const step = steps[event.key];
      const cell = event.target.closest("td");
      if (!step || !cell) return;
      event.preventDefault();
      let [row, column] = [cell.parentElement.rowIndex + step[0], cell.cellIndex + step[1]];
      while (table.rows[row]?.cells[column]) {
        const link = linkAt(row, column);
        if (link) return link.focus();
        row += step[0];
        column += step[1];
      }
    });
  };

  const filters = new Map();
  for (const table of document.querySelectorAll("table[data-filter]")) filters.set(table, makeFilters(table));
  for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
  for (const table of document.querySelectorAll("table.heat")) makeGrid(table);

  // A link to a line shows it: filters are reset, and what is folded around it is opened.
  const reveal = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (!target) return;
    const table = target.closest("table");
    if (target.hidden && filters.has(table)) filters.get(table).clear();
    for (let at = target.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
    target.scrollIntoView({ block: "center" });
    if (target.matches("tr")) {
      target.tabIndex = -1;
      target.focus({ preventScroll: true });
    }
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  // Tables are printed whole. Items that changed are printed only if they are open: they can be hundreds of pages.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details.task:not([open]), details.more:not([open])")];
    for (const details of closed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of closed) details.open = false;
  });
})();
