"""Every address of the project."""

from django.contrib import admin
from django.urls import include, path

from orders.sign_in import AdminSignInForm

admin.autodiscover()
admin.site.site_header = admin.site.site_title = "Warren"
admin.site.index_title = "Administration"
admin.site.index_template = "messaging/admin/index.html"
admin.site.login_form = AdminSignInForm

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("orders.urls")),
]

handler400 = "orders.views.errors.bad_request"
handler500 = "orders.views.errors.server_error"
