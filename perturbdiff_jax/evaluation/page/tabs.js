// Parts of which one is seen at a time: buttons, and the arrow keys, Home and End between them.
"use strict";
for (const tabs of document.querySelectorAll(".tabs")) {
  const list = tabs.querySelector('[role="tablist"]');
  const buttons = [...list.querySelectorAll('[role="tab"]')];
  const panels = buttons.map((button) => document.getElementById(button.getAttribute("aria-controls")));
  const show = (chosen) => buttons.forEach((button, place) => {
    button.setAttribute("aria-selected", place === chosen);
    button.tabIndex = place === chosen ? 0 : -1;
    panels[place].classList.toggle("off", place !== chosen);
  });
  panels.forEach((panel, place) => {
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", buttons[place].id);
    panel.tabIndex = 0;
  });
  buttons.forEach((button, place) => {
    button.addEventListener("click", () => show(place));
    button.addEventListener("keydown", (event) => {
      const last = buttons.length - 1;
      const [after, before] = [place === last ? 0 : place + 1, place === 0 ? last : place - 1];
      const next = { ArrowRight: after, ArrowLeft: before, Home: 0, End: last }[event.key];
      if (next === undefined) return;
      event.preventDefault();
      show(next);
      buttons[next].focus();
    });
  });
  list.hidden = false;
  tabs.classList.add("on");
  show(0);
}
