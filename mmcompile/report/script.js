// Conveniences of report.html: sorting, filtering and copying. The page is complete without them.
"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const key = (row) => row.cells[column].dataset.sort;
      const compare = (a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        const numbers = Number(key(a)) - Number(key(b));
        const order = Number.isNaN(numbers)
          ? key(a).localeCompare(key(b), undefined, { numeric: true })
          : numbers;
        return ascending ? order : -order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

const filter = document.querySelector("#filter");
if (filter) {
  const status = document.querySelector("#filter-status");
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const part of document.querySelectorAll("[data-name]")) {
      const found = words.every((word) => part.dataset.name.includes(word));
      part.hidden = !found;
      if (found && part.matches("tr")) shown += 1;
    }
    status.textContent = filter.value ? `${shown} shown` : "";
  });
}

for (const block of navigator.clipboard ? document.querySelectorAll(".command") : []) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(block.querySelector("pre").textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  block.append(button);
}
