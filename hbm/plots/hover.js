// Pointing at a figure, or the arrow keys on it, tell what the nearest point stands for.
for (const data of document.querySelectorAll("script.hover:not(.used)")) {
  data.classList.add("used");
  const points = JSON.parse(data.textContent); // [share of the width, share of the height, text]
  const note = document.createElement("div");
  note.className = "hover-note";
  note.setAttribute("role", "status");
  document.body.append(note);
  let at = -1;
  const show = (picture, index) => {
    at = index;
    note.textContent = points[index]?.[2] ?? "";
    if (index < 0) return;
    const box = picture.getBoundingClientRect();
    const [x, y] = [box.left + points[index][0] * box.width, box.top + points[index][1] * box.height];
    note.style.left = Math.max(4, Math.min(x + 10, innerWidth - note.offsetWidth - 4)) + "px";
    note.style.top = (y + note.offsetHeight + 20 > innerHeight ? y - note.offsetHeight - 10 : y + 12) + "px";
    note.style.setProperty("--x", x - parseFloat(note.style.left) + "px");
    note.style.setProperty("--y", y - parseFloat(note.style.top) + "px");
  };
  for (const picture of document.querySelectorAll(`#${data.dataset.figure} img`)) {
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      let [nearest, best] = [-1, 15 ** 2];
      points.forEach(([x, y], i) => {
        const away = (box.left + x * box.width - event.clientX) ** 2 + (box.top + y * box.height - event.clientY) ** 2;
        if (away < best) [nearest, best] = [i, away];
      });
      show(picture, nearest);
    });
    picture.addEventListener("pointerleave", () => show(picture, -1));
    const link = picture.closest("a");
    link?.addEventListener("blur", () => show(picture, -1));
    link?.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") show(picture, -1);
      if (!step) return;
      event.preventDefault();
      show(picture, (at + step + points.length) % points.length);
    });
  }
}
