import("/desk/admin.js").then((module) => module.start(element, server));
