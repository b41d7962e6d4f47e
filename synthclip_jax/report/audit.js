"use strict";
// Texts are set as text, never as markup: captions and concepts are anyone's.
const most = 200;
const data = document.getElementById("concepts");
const query = document.getElementById("query");
const found = document.getElementById("found");
const count = document.getElementById("count");
if (data && query) {
  const rows = JSON.parse(data.textContent).map(row => [...row, (row[0] + " " + row[1]).toLowerCase()]);
  const show = () => {
    const wanted = query.value.trim().toLowerCase();
    const hits = wanted ? rows.filter(row => row[4].includes(wanted)) : rows;
    found.replaceChildren(...hits.slice(0, most).map(row => {
      const line = document.createElement("tr");
      row.slice(0, 4).forEach((value, index) => {
        const cell = document.createElement(index ? "td" : "th");
        cell.textContent = index > 1 ? value.toLocaleString("en") : value;
        line.append(cell);
      });
      return line;
    }));
    count.textContent = hits.length.toLocaleString("en") + " found"
      + (hits.length > most ? ", the first " + most + " shown" : "");
  };
  query.addEventListener("input", show);
  show();
}
