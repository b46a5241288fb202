// What a report can do beyond being read: sort a table, show all of it, look for paths, tell what is pointed at.
// The page is whole without it.
(function () {
  "use strict";
  var page = document;
  page.documentElement.classList.add("js");

  function each(selector, does, within) {
    Array.prototype.forEach.call((within || page).querySelectorAll(selector), does);
  }

  function value(row, column) {
    var cell = row.cells[column];
    var given = cell.getAttribute("data-v");
    return given === null ? cell.textContent : Number(given);
  }

  each("table.sorts th", function (head) {
    if (head.classList.contains("fixed")) { return; }
    var button = page.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.textContent = "";
    head.appendChild(button);
    button.addEventListener("click", function () {
      var table = head.closest("table");
      var column = head.cellIndex;
      var numbers = head.classList.contains("r");
      var down = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : numbers;
      each("th", function (other) { other.removeAttribute("aria-sort"); }, table);
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      var body = table.tBodies[0];
      var rows = Array.prototype.slice.call(body.rows);
      rows.sort(function (a, b) {
        var one = value(a, column), other = value(b, column);
        var order = one < other ? -1 : one > other ? 1 : 0;
        return down ? -order : order;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });

  each("button.all", function (button) {
    var table = page.getElementById(button.getAttribute("data-for"));
    button.addEventListener("click", function () {
      table.classList.remove("short");
      button.remove();
    });
  });

  var search = page.getElementById("search");
  var told = page.getElementById("found");
  search.addEventListener("input", function () {
    var words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    var count = 0;
    each("table.files", function (table) {
      if (table.hasAttribute("data-short") === false && table.classList.contains("short")) {
        table.setAttribute("data-short", "");
      }
      table.classList.toggle("short", !words.length && table.hasAttribute("data-short"));
      each("tbody tr", function (row) {
        var text = row.querySelector(".path").textContent.toLowerCase();
        var fits = words.every(function (word) { return text.indexOf(word) >= 0; });
        row.classList.toggle("out", !fits);
        count += fits ? 1 : 0;
      }, table);
    });
    told.textContent = words.length ? count + (count === 1 ? " row" : " rows") : "";
  });

  var tip = page.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  page.body.appendChild(tip);
  each("svg g > title", function (title) {
    var group = title.parentNode;
    var text = title.textContent;
    group.setAttribute("aria-label", text);
    title.remove(); // or the browser would show it, too
    group.addEventListener("pointermove", function (event) {
      tip.textContent = text;
      tip.hidden = false;
      var box = tip.getBoundingClientRect();
      var left = Math.max(4, Math.min(event.clientX + 14, page.documentElement.clientWidth - box.width - 4));
      var above = event.clientY + 18 + box.height > window.innerHeight;
      tip.style.left = left + "px";
      tip.style.top = (above ? event.clientY - box.height - 10 : event.clientY + 18) + "px";
    });
    group.addEventListener("pointerleave", function () { tip.hidden = true; });
  });

  window.addEventListener("beforeprint", function () {
    each("details", function (one) { one.open = true; });
  });
})();
