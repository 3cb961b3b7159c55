"use strict";
// Tables are sorted by a click on a column's name; a page that is served renews itself and stays where it was.
const sorted = new Map(); // table's id -> [column, descending]

function sort(table, column, descending) {
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is not there comes last
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return descending ? -order : order;
  });
  body.append(...rows);
  [...table.tHead.rows[0].cells].forEach((cell, index) => {
    if (index === column) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
  sorted.set(table.id, [column, descending]);
}

function prepare() {
  reach();
  for (const table of document.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.id = `${table.id}-by-${column}`;
      button.textContent = cell.textContent;
      button.addEventListener("click", () => sort(table, column, cell.getAttribute("aria-sort") === "ascending"));
      cell.replaceChildren(button);
    });
    if (sorted.has(table.id)) sort(table, ...sorted.get(table.id));
  }
}

// What has to be scrolled can be, by keys; what fits is no stop for them.
function reach() {
  for (const each of document.querySelectorAll(".scroll")) {
    if (each.scrollWidth > each.clientWidth) each.tabIndex = 0;
    else each.removeAttribute("tabindex");
  }
}

let version = document.body.dataset.live;
async function follow() {
  const following = document.getElementById("following");
  try {
    const now = await (await fetch("version")).text();
    if (now !== version && getSelection().isCollapsed) {
      const next = new DOMParser().parseFromString(await (await fetch("./")).text(), "text/html");
      const open = [...document.querySelectorAll("details[open]")].map((each) => each.id);
      const moved = [...document.querySelectorAll(".scroll")].map((each) => [each.id, each.scrollLeft]);
      const [focus, height] = [document.activeElement?.id, scrollY];
      document.getElementById("main").replaceWith(next.getElementById("main"));
      version = next.body.dataset.live;
      prepare();
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      for (const [id, left] of moved) if (left) document.getElementById(id)?.scrollTo({ left });
      if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
      scrollTo({ top: height, behavior: "instant" });
    }
    following.textContent = `following; looked at ${new Date().toLocaleTimeString()}`;
  } catch {
    following.textContent = "nothing answers any more: raydpo watch has ended; what stands here is the last of it";
  }
  setTimeout(follow, 2000);
}

prepare();
addEventListener("resize", reach);
addEventListener("toggle", reach, true);
if (version) follow();
