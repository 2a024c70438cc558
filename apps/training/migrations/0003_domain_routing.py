import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('training', '0002_method_objective_stages'),
    ]

    operations = [
        migrations.AddField(
            model_name='trainingjob',
            name='domain_routing',
            field=models.FloatField(default=0.0, help_text='weight of the mutual information of expert and domain', validators=[django.core.validators.MinValueValidator(0.0), django.core.validators.MaxValueValidator(1.0)]),
        ),
    ]
